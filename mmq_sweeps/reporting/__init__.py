"""Records as people see them: tables, progress, W&B."""
