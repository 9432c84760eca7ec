"""Ranks that make no progress: noticed, asked what they are at, and told who holds up whom."""
