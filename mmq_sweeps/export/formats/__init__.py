"""How quantized linears stand in a checkpoint, a file a format; tensors and settings only, no models."""
