"""Handing a plan to a scheduler, and asking what became of it."""
