"""A split: images and their labels, whatever they are read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images.open import MinSizeFn

__all__ = ["Source", "Split"]


class Source(Protocol):
    """Where images are read from, by position. Plain data, so that worker processes get it cheaply."""

    def name(self, position: int) -> str:
        """The image's name relative to the dataset's root, with "/": the same wherever the dataset lies."""

    def where(self, position: int) -> str:
        """The image's place as messages show it."""

    def open(self, position: int, smallest: MinSizeFn | None) -> Image.Image:
        """The decoded image; see `images.open_image` for `smallest` and for what is raised."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """N images and their labels.

    `labels` (N,) int64 holds the index of each image's class; image i is number `members[i]` (int64) of `source`.
    """

    name: str
    labels: NDArray[np.int64]
    source: Source
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Iterator[str]:
        """The images' names in order, relative to the dataset's root, with "/": the same wherever the dataset lies."""
        return (self.source.name(int(position)) for position in self.members)

    def where(self, index: int) -> str:
        """Image `index` as messages show it: a file's path."""
        return self.source.where(int(self.members[index]))

    def open(self, index: int, *, smallest: MinSizeFn | None = None) -> Image.Image:
        """Image `index`, decoded; at a fraction of its size where `smallest` allows, see `images.open_image`.

        Raises:
            ImageError: if it is empty, over a limit, damaged or not an image; the message names it.
            InputError: if it cannot be read.
        """
        return self.source.open(int(self.members[index]), smallest)

    def select(self, positions: NDArray[np.int64]) -> Self:
        """The images at these positions, in this order."""
        return dataclasses.replace(self, labels=self.labels[positions], members=self.members[positions])
