"""Experiments: configurations, trials, searches and their statistics; yields records and draws nothing."""
