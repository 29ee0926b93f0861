"""Write a finished cell as a checkpoint that others load, equal to what was measured."""
