"""Ranks that compute longer than others that do the same: found in the steps of a job, and described."""
