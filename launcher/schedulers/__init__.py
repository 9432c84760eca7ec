"""Submits plans to schedulers, and queries and cancels the jobs."""
