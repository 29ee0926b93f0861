"""Task families, and a command that scores finished predictions."""
