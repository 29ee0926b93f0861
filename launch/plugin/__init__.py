"""Hydra's launcher and sweeper plugins."""
