"""`lipsformer stability`: two models over a grid of learning rates."""
