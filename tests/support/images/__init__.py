"""Image files for the tests: ordinary, odd, hostile and mutated ones."""
