"""From a model and calibration batches to quantized units."""
