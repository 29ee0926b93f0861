"""From Hydra's configuration to the checked cells of a sweep. Imports no torch."""
