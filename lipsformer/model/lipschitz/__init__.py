"""Lipschitz bounds of layers and networks, from their weights alone."""
