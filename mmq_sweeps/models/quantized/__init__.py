"""Read checkpoints that are quantized already, ours or another tool's: how they are stored, and which loaders take them."""
