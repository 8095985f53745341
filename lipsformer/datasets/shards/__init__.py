"""Datasets in uncompressed tar shards, as files or by URL."""
