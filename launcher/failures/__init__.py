"""How ranks fail: their exits and exceptions, the report of a failure, and whether a restart may help."""
