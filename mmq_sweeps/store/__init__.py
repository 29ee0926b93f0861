"""The folder that holds records and artifacts, shared by any number of processes and machines."""
