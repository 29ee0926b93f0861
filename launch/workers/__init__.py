"""Worker processes: starting, watching and stopping them."""
