"""Experiments and timings; not part of the installed package."""
