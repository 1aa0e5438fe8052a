"""Studies on disk: the only writer and the only reader of results."""
