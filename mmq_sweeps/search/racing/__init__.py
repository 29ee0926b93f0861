"""Compare candidates of a budget on growing sets of items."""
