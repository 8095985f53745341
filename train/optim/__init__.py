"""Optimizers, parameter groups, the learning-rate schedule and averaged weights."""
