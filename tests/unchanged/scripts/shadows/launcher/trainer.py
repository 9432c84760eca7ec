"""A module of the user's own."""

OWN = "launcher of the script"
