"""What the cells show: frontier, importance, sensitivity, recommendation."""
