"""Validate Hydra configurations and compose them into the cells of a sweep. Imports no torch."""
