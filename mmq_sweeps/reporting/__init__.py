"""Present records: tables, progress bars and W&B."""
