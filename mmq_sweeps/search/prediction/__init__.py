"""Predict the share of full precision that every point keeps, and find the best points of the prediction."""
