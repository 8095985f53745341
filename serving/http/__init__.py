"""The HTTP layer: from a request to its response."""
