"""Measures over a table of cells: frontier, importance, sensitivity, recommendation."""
