"""Search for the best assignment within a budget: batches of cells, chosen by ``mmq_sweeps.search``, until it is proven."""
