"""Heat maps of checkpoints and bundles: which pixels spoke for a class, drawn over photos."""
