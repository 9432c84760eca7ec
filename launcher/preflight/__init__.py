"""The preflight check: waits for all ranks of an attempt, and compares them before they join."""
