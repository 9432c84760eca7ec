"""Rehearsals: one rank of each kind at full world size, without GPUs and peers."""
