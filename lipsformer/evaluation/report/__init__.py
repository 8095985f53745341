"""Reports on what a model answered, the same for training and evaluation: a table and two pictures."""
