"""LipsFormer in other libraries' terms."""
