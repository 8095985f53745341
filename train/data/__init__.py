"""Training data: sampling, random numbers, crops, and the workers that load batches."""
