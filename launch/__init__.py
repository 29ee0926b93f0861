"""Where the cells of a sweep run: Hydra launchers."""
