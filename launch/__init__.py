"""Run the cells of a sweep: Hydra launchers, workers, SLURM jobs, and the commands that watch them."""
