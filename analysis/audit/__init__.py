"""Defects of results."""
