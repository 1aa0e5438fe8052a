"""Simulated coverage of every interval that `ahf` prints, for the tables of docs/statistics.md."""
