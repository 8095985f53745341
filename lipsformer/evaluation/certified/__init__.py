"""Certified accuracy, and attacks that check it."""
