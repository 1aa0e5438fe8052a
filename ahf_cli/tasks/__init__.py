"""Tasks: data, models, losses and metrics."""
