"""What every way of keeping a dataset has to tell, so that the rules of `dataset.py` are written once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .split import Source

__all__ = ["SPLITS", "Layout", "Listing"]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """The N images of one split under its own class names: image i of `source` is of class `classes[labels[i]]`.

    `labels` (N,) is int64; `places` says where each class is found, for messages.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    places: tuple[str, ...]
    source: Source


class Layout(Protocol):
    """A dataset's splits before they are read. A split None means the whole of a dataset that has no splits."""

    @property
    def root(self) -> Path:
        """What names are relative to."""

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits that there are."""

    @property
    def unit(self) -> str:
        """What a split is kept in, for messages."""

    @property
    def classes(self) -> str:
        """What classes are kept in, for messages."""

    def place(self, split: str | None) -> str:
        """Where a split lies, for messages."""

    def example(self, split: str | None) -> str:
        """Where images of a split would have to lie, for messages."""

    def read(self, split: str | None) -> Listing:
        """The images of a split."""
