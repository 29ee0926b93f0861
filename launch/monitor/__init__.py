"""The state of a sweep while it runs, and how it is shown."""
