"""Datasets as tables: CSV, TSV, JSON lines and Parquet with an image and a label in each row."""

from .reader import TableReader, is_table

__all__ = ["TableReader", "is_table"]
