"""A module of the user's own."""

OWN = "config of the script"
