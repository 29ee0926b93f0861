"""The searches of AWQ: output errors from a Gram matrix, races of candidates, scales and clipped ranges."""
