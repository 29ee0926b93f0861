"""Run the cells of a plan on this machine, or as SLURM jobs."""
