"""Running cells in one process: the session, the cell, and the caches between cells."""
