"""Readers and splits: what every way of storing a dataset has in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images.open import MinSizeFn, open_image

from .left_out import LeftOut

__all__ = ["Grouping", "Reader", "Split"]


class Reader(Protocol):
    """A dataset as it is stored. A split of None means all images of a dataset that has no splits."""

    @property
    def root(self) -> Path:
        """The folder that image names are relative to."""

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits that were found."""

    @property
    def left_out(self) -> LeftOut:
        """What belongs to no split. What a split leaves out is in its own `left_out`."""

    def place(self, split: str | None) -> str:
        """Where a split is stored, for messages."""

    def example(self, split: str | None) -> str:
        """Where images of a split would be stored, for messages."""

    def read(self, split: str | None) -> Split:
        """Lists the images of a split, under the classes found there.

        Raises:
            InputError: if it cannot be read.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """A column of a table: the image at position i in storage has `values[codes[i]]`."""

    column: str
    codes: NDArray[np.int32]
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split(abc.ABC):
    """N labeled images. Worker processes receive a copy, so a split is plain data.

    `labels` (N,) int64 are indices into `classes`. `members` (N,) int64 are the images' positions in storage.
    `left_out` counts what was found there and is not used.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    members: NDArray[np.int64]
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    grouping: Grouping | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Iterator[str]:
        """The images' names in order, relative to the dataset's root, with "/": the same wherever the dataset is."""
        return map(self.image_name, range(len(self)))

    def counts(self) -> NDArray[np.int64]:
        """The number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def groups(self, column: str) -> list[str] | None:
        """The value of each image in the column that was read for groups; None if it is another one."""
        if self.grouping is None or self.grouping.column != column:
            return None
        return [self.grouping.values[code] for code in self.grouping.codes[self.members].tolist()]

    def select(self, indices: NDArray[np.int64]) -> Self:
        """The images at these indices, in this order."""
        return dataclasses.replace(self, labels=self.labels[indices], members=self.members[indices])

    @abc.abstractmethod
    def image_name(self, index: int) -> str:
        """The name of image `index`, see `names`."""

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """The path of image `index`, for messages."""

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """The encoded image `index`: the content of its file.

        Raises:
            ImageError: if it is larger than an image may be.
            InputError: if it cannot be read.
        """

    def open(self, index: int, *, smallest: MinSizeFn | None = None) -> Image.Image:
        """Decodes image `index`, at a fraction of its size where `smallest` allows; see `images.open_image`.

        Raises:
            ImageError: if it is empty, over a limit, damaged or not an image. The message names it.
            InputError: if it cannot be read.
        """
        return open_image(self.encoded(index), name=self.where(index), smallest=smallest)
