"""Find defects in results."""
