"""Publish to W&B: dashboards, and cells that a project lacks."""
