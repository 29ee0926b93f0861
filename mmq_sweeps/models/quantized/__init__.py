"""Read checkpoints that are quantized already, ours or another tool's: what is stored how, and which loaders take it."""
