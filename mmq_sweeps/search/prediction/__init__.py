"""Predict what every point keeps of full precision, and find the best points of the prediction."""
