"""Task families, and the scoring of finished predictions from the command line."""
