"""Random crops of training images, and random shifts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets import Split
from lipsformer.images.open import Box
from lipsformer.images.preprocessing import Preprocessing

__all__ = ["Crops", "Shifts", "random_box"]

CROP_RATIO = (3 / 4, 4 / 3)  # width / height, as in Inception's random resized crop (Szegedy et al. 2015)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
    """Random resized crops that `preprocessing` reads; see `random_box` for `scale`.

    Each is mirrored with probability `hflip`. A crop with more than `reducing_gap` times the size is first shrunk by a
    whole factor: faster, with hardly a difference.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float]
    hflip: float
    reducing_gap: float | None = 2.0

    def read(self, split: Split, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random crop of image `index`: pixels (image_size, image_size, 3).

        Raises:
            InputError: if the image cannot be read; the message names it.
        """
        crop = self.preprocessing.read(
            split.encoded(index),
            name=split.where(index),
            box=lambda size: random_box(rng, size, self.scale),
            reducing_gap=self.reducing_gap,
        )
        return crop[:, ::-1] if rng.random() < self.hflip else crop


class Shifts:
    """Whole images as predictions see them, moved by up to `shift` pixels, and mirrored with probability `hflip`.

    What moves in is reflected. With `keep`, each image is decoded once and its pixels stay in memory.
    """

    def __init__(self, preprocessing: Preprocessing, *, shift: int, hflip: float, keep: bool) -> None:
        self.preprocessing = preprocessing
        self.shift = shift
        self.hflip = hflip
        self.kept: dict[int, NDArray[np.uint8]] | None = {} if keep else None

    def read(self, split: Split, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Image `index`, moved: pixels (image_size, image_size, 3).

        Raises:
            InputError: if the image cannot be read; the message names it.
        """
        pixels = self._whole(split, index)
        down, right = rng.integers(-self.shift, self.shift, 2, endpoint=True).tolist()
        rows, columns = moved(len(pixels), down), moved(len(pixels), right)
        return pixels.take(rows, axis=0).take(columns[::-1] if rng.random() < self.hflip else columns, axis=1)

    def _whole(self, split: Split, index: int) -> NDArray[np.uint8]:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        pixels = self.preprocessing.read(split.encoded(index), name=split.where(index))
        if self.kept is not None:
            self.kept[index] = pixels
        return pixels


def moved(side: int, offset: int) -> NDArray[np.int64]:
    """For each row of a square that is moved by `offset`, the row that is seen there: reflected at the edges."""
    rows: NDArray[np.int64] = side - 1 - abs(side - 1 - abs(np.arange(side) + offset))
    return rows


def random_box(rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]) -> Box:
    """A random crop (left, top, right, bottom) of an image of `size` = (width, height), in fractional pixels.

    Its share of the area is uniform in `scale`, its ratio of width to height log-uniform in 3/4 to 4/3; both are
    clipped to the image.
    """
    area = rng.uniform(*scale) * size[0] * size[1]
    ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    width, height = min(math.sqrt(area * ratio), size[0]), min(math.sqrt(area / ratio), size[1])
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, top + height
