"""SLURM: its commands, its settings, and the jobs of a sweep."""
