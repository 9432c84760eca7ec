"""The commands of `mimo-launch`, a module each: `run(arguments)` carries it out and returns the exit code."""
