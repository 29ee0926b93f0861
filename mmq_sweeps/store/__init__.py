"""Records, artifacts and locks in one folder, shared by any number of processes and machines."""
