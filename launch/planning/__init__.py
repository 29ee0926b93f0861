"""Prepare a sweep: the plan, its estimate, and the checks before the first job."""
