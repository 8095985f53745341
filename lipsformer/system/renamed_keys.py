"""Older names of keys in our files, and their current names.

Checkpoints, bundles, training states and recipes from older versions are read through `current_keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

__all__ = ["PREPROCESSING_KEYS", "RECIPE_KEYS", "current_keys"]

Value = TypeVar("Value")

PREPROCESSING_KEYS = {"crop_fraction": "crop_pct"}
RECIPE_KEYS = {
    "accumulate": "grad_accum_steps",
    "crop_fraction": "crop_pct",
    "erasing": "random_erasing",
    "flip": "hflip",
    "recompute": "grad_checkpointing",
    "reference_batch": "lr_base_batch_size",
}


def current_keys(data: Mapping[str, Value], renamed: Mapping[str, str]) -> dict[str, Value]:
    """`data` under current names, in the same order. A key under both names stays, for the caller to reject."""
    return {key if renamed.get(key, key) in data else renamed.get(key, key): value for key, value in dict(data).items()}
