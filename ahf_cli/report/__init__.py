"""Tables, figures and verdicts of studies on disk."""
