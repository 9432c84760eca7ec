"""What went wrong with a rank, told in role terms, and whether another start may help."""
