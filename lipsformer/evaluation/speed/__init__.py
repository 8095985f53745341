"""`lipsformer benchmark`: speed, memory and parity of models, side by side."""
