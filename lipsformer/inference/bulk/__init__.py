"""Prediction of any number of images into one file of rows, on one machine or in parts on several.

The names below are imported when first used: `lipsformer predict BUNDLE PHOTO` only lists images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipsformer.system.extras import import_public

if TYPE_CHECKING:
    from .bulk import predict_to_file
    from .parts import merge_parts
    from .settings import BulkOptions, Part

__all__ = ["BulkOptions", "Part", "merge_parts", "predict_to_file"]

_HOMES = {"BulkOptions": "settings", "Part": "settings", "merge_parts": "parts", "predict_to_file": "bulk"}


def __getattr__(name: str) -> Any:
    return import_public(__name__, _HOMES, name)
