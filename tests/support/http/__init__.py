"""Servers that tests speak to, and clients that speak to ours."""
