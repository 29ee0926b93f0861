"""Where the cells of a sweep run: on this machine, or as SLURM jobs."""
