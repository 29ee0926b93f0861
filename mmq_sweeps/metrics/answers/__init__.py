"""Metrics of short answers, letters of options, and yes or no."""
