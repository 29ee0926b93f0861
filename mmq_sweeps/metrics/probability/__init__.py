"""Metrics of how probable a model finds answers: its own, or the right ones."""
