"""Metrics of ranks: texts found for images and images for texts."""
