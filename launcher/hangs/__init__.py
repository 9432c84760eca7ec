"""Hang detection: finds that no rank makes progress, probes all ranks, and reports which of them hold up the others."""
