"""Before a training: the dry run and the learning-rate range test."""
