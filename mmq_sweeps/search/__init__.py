"""Find the assignment for a budget: sensitivity of units, exact allocation, and a race of the best candidates."""
