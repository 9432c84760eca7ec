"""A module of the user's own."""

OWN = "program of the script"
