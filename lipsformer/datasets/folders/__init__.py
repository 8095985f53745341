"""Datasets in class folders, with or without splits."""
