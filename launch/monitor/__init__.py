"""Read the state of a running sweep, and show it."""
