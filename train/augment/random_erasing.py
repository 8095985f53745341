"""Random random_erasing (Zhong et al. 2020): a box of each chosen image becomes normal noise, pixel by pixel."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor

from lipsformer.train.data.rng import Rows

__all__ = ["Erasures", "draw_erasures", "erase"]

SHARE = (0.02, 1 / 3)  # of the image's area
RATIO = (0.3, 3.3)  # height / width
ATTEMPTS = 10  # to find a box that fits
NOISE = 2**20

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasures(Rows):
    """The box and the noise of each image of a batch.

    Attributes:
        sizes: (B, 2) height and width as shares of the image's, 0 where nothing is erased.
        places: (B, 2) the box's place in 0..1 between top and bottom, left and right.
        noise: (B,) where in the table of noise the image's noise starts.
    """

    sizes: Array
    places: Array
    noise: Indices


def draw_erasures(rng: np.random.Generator, batch: int, probability: float) -> Erasures:
    """Boxes for `batch` images, each erased with `probability`."""
    erased = rng.random(batch) < probability
    shares = rng.uniform(*SHARE, (batch, ATTEMPTS))
    ratios = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), (batch, ATTEMPTS)))
    sizes = np.sqrt(np.stack([shares * ratios, shares / ratios], axis=-1))  # (B, attempts, 2)
    fits = sizes.max(axis=-1) < 1  # (B, attempts)
    first = sizes[np.arange(batch), fits.argmax(axis=1)]
    return Erasures(
        sizes=first * (erased & fits.max(axis=1))[:, None],
        places=rng.random((batch, 2)),
        noise=rng.integers(NOISE, size=batch),
    )


def erase(images: Tensor, erasures: Erasures) -> Tensor:
    """Erases in normalized images (B, S, S, 3), in place.

    An image's noise is a window of one long table, from a place that was drawn for it: as good as fresh noise, since
    no image meets the same window twice in practice, and the same on every device.
    """
    side = images.shape[1]
    chosen = np.flatnonzero(erasures.sizes.any(axis=1))
    if not len(chosen):
        return images
    sizes = np.rint(erasures.sizes[chosen] * side)  # in pixels
    starts = np.floor(erasures.places[chosen] * (side - sizes + 1))
    bounds = torch.from_numpy(np.stack([starts, starts + sizes])).to(images.device, non_blocking=True)  # (2, E, 2)
    index = torch.from_numpy(np.stack([chosen, erasures.noise[chosen]])).to(images.device, non_blocking=True)
    axis = torch.arange(side, device=images.device)
    within = (axis >= bounds[0, ..., None]) & (axis < bounds[1, ..., None])  # (E, 2, S)
    box = within[:, 0, :, None, None] & within[:, 1, None, :, None]  # (E, S, S, 1)
    window = side * side * 3
    table = _noise(NOISE + window, images.device, images.dtype)
    noise = table.unfold(0, window, 1)[index[1]].view(-1, side, side, 3)
    return images.index_copy_(0, index[0], torch.where(box, noise, images.index_select(0, index[0])))


@functools.lru_cache(maxsize=2)
def _noise(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A fixed table of standard normal numbers, (length,)."""
    numbers = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    return torch.from_numpy(numbers).to(device, dtype)
