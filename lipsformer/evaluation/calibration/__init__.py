"""Calibration on labeled photos: a temperature for the probabilities, and when to accept an answer."""
