"""Whoever follows a training: the progress display, learning curves, TensorBoard."""
