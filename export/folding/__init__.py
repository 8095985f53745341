"""Exact inference-time folding of a trained network."""
