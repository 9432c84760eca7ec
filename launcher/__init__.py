"""From one YAML file to running processes."""
