"""`mimo-launch top`: a run as it is now, by module, redrawn on a terminal or printed line by line."""
