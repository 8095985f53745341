"""Checkpoints: our safetensors files, the official code's, and the trained model that ships."""
