"""Scoring of lmms-eval's tasks, and its rehearsal before any cell."""
