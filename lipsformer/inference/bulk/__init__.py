"""Prediction of any number of images into one file of rows, on one machine or in parts on several."""

from .bulk import predict_to_file
from .parts import merge_parts
from .settings import BulkOptions, Part

__all__ = ["BulkOptions", "Part", "merge_parts", "predict_to_file"]
