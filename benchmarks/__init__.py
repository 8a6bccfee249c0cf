"""Races against peers, in one process, in turns: `python -m benchmarks`."""
