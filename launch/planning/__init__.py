"""A sweep before it runs: the plan, its estimate, and the checks."""
