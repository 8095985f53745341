"""Measurements of a model: accuracy on labeled images, with reports, and speed."""
