"""Training data: order, random numbers, crops, and the workers that load batches."""
