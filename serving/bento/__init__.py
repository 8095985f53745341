"""Everything that touches BentoML."""
