"""A module of the user's own."""

OWN = "yaml of the script"
