"""Metrics of captions against several references."""
