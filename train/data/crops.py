"""Random crops of training images, each decoded no larger than its crop needs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lipsformer.datasets import Split
from lipsformer.images.open import MinSizeFn
from lipsformer.images.preprocessing import FILTERS, Preprocessing
from lipsformer.system.errors import InputError

__all__ = ["Crops", "random_box", "read_8bit"]

CROP_RATIO = (3 / 4, 4 / 3)  # width / height, as in Inception's random resized crop (Szegedy et al. 2015)

# A crop is decoded with at least this many times its final side. 1.5 changes crops of photos by 0.4 to 0.9 gray
# levels of 255 on average, 2 by 0.3 to 0.7, 1 by 0.8 to 1.9; the reducing_gap below alone by 0.3 to 1.0
# (benchmarks/data).
GAP = 1.5

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
    """Random resized crops of `preprocessing`'s size, filter and colors; see `random_box` for `scale`.

    Each is mirrored with probability `hflip`. The decoder gives at least `gap` times the size in pixels a side. A crop
    with more than `reducing_gap` times the size is first shrunk by a whole factor: faster, with hardly a difference.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float]
    hflip: float
    gap: float = GAP
    reducing_gap: float | None = 2.0

    def read(self, split: Split, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random crop of image `index`: pixels (image_size, image_size, 3).

        Raises:
            InputError: if the image cannot be read; the message names it.
        """
        plan = _Plan(crops=self, rng=rng)
        image = read_8bit(split, index, self.preprocessing, plan)
        # The decoder rounds sides up, so the factor is taken as the nearest power of two.
        factor = 2 ** round(math.log2(plan.full[0] / image.width))
        left, top, right, bottom = (edge / factor for edge in plan.box)
        box = (left, top, right, bottom)
        size, resample = (self.preprocessing.image_size,) * 2, FILTERS[self.preprocessing.interpolation]
        crop = self.preprocessing.to_srgb(image.resize(size, resample, box, reducing_gap=self.reducing_gap))
        return np.asarray(ImageOps.mirror(crop) if rng.random() < self.hflip else crop)


@dataclasses.dataclass(kw_only=True)
class _Plan:
    """Draws the box once the image's upright size `full` is known, and returns the smallest size that is enough."""

    crops: Crops
    rng: np.random.Generator
    full: tuple[int, int] = (0, 0)
    box: Box = (0.0, 0.0, 0.0, 0.0)

    def __call__(self, full: tuple[int, int]) -> tuple[float, float]:
        self.full, self.box = full, random_box(self.rng, full, self.crops.scale)
        side = min(self.box[2] - self.box[0], self.box[3] - self.box[1])
        spare = max(side / (self.crops.gap * self.crops.preprocessing.image_size), 1.0)
        return full[0] / spare, full[1] / spare


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


def read_8bit(split: Split, index: int, preprocessing: Preprocessing, smallest: MinSizeFn | None = None) -> Image.Image:
    """Image `index` as `Preprocessing.to_8bit` gives it, at a fraction of its size if `smallest` allows.

    Raises:
        InputError: if it cannot be read; the message names it.
    """
    image = split.open(index, smallest=smallest)
    try:
        return preprocessing.to_8bit(image)
    except InputError as error:
        raise InputError(f"{split.where(index)}: {error}") from None
