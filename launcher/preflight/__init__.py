"""The ranks of a start as they come, and whether they fit together."""
