"""Loading of models, placement of their weights, preparation of their inputs, and checks."""
