"""A module of the user's own."""

OWN = "tabulate of the script"
