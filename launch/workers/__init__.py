"""Start, watch and stop worker processes."""
