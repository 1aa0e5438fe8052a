"""Training of trials: one job on one task, and its records."""
