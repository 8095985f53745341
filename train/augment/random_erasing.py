"""Random erasing (Zhong et al. 2020): normal noise, pixel by pixel, over a box of each chosen image."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor

from lipsformer.train.data.rng import PerImage

__all__ = ["ErasingParams", "random_erasing", "sample_random_erasing"]

AREA = (0.02, 1 / 3)  # share of the image's
RATIO = (0.3, 3.3)  # height / width
ATTEMPTS = 10  # to find a box that fits
NOISE_LENGTH = 2**20

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErasingParams(PerImage):
    """The box and the noise of each image of a batch.

    Attributes:
        sizes: (B, 2) height and width as shares of the image's, 0 where nothing is erased.
        positions: (B, 2) of the box in 0..1, between top and bottom, left and right.
        noise: (B,) offset of the image's noise in the noise table.
    """

    sizes: Array
    positions: Array
    noise: Indices


def sample_random_erasing(rng: np.random.Generator, batch_size: int, probability: float) -> ErasingParams:
    """Random boxes for `batch_size` images, each erased with `probability`."""
    erased = rng.random(batch_size) < probability
    areas = rng.uniform(*AREA, (batch_size, ATTEMPTS))
    ratios = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), (batch_size, ATTEMPTS)))
    sizes = np.sqrt(np.stack([areas * ratios, areas / ratios], axis=-1))  # (B, attempts, 2)
    fits = sizes.max(axis=-1) < 1  # (B, attempts)
    first = sizes[np.arange(batch_size), fits.argmax(axis=1)]
    return ErasingParams(
        sizes=first * (erased & fits.max(axis=1))[:, None],
        positions=rng.random((batch_size, 2)),
        noise=rng.integers(NOISE_LENGTH, size=batch_size),
    )


def random_erasing(images: Tensor, params: ErasingParams) -> Tensor:
    """Erases boxes of normalized images (B, S, S, 3), in place.

    An image's noise is a window of one long table, at a random offset. That is as good as fresh noise, since in
    practice no image gets the same window twice, and it is the same on every device.
    """
    side = images.shape[1]
    chosen = np.flatnonzero(params.sizes.any(axis=1))
    if not len(chosen):
        return images
    sizes = np.rint(params.sizes[chosen] * side)  # in pixels
    starts = np.floor(params.positions[chosen] * (side - sizes + 1))
    bounds = torch.from_numpy(np.stack([starts, starts + sizes])).to(images.device, non_blocking=True)  # (2, E, 2)
    index = torch.from_numpy(np.stack([chosen, params.noise[chosen]])).to(images.device, non_blocking=True)
    axis = torch.arange(side, device=images.device)
    within = (axis >= bounds[0, ..., None]) & (axis < bounds[1, ..., None])  # (E, 2, S)
    box = within[:, 0, :, None, None] & within[:, 1, None, :, None]  # (E, S, S, 1)
    window = side * side * 3
    table = _noise(NOISE_LENGTH + window, images.device, images.dtype)
    noise = table.unfold(0, window, 1)[index[1]].view(-1, side, side, 3)
    return images.index_copy_(0, index[0], torch.where(box, noise, images.index_select(0, index[0])))


@functools.lru_cache(maxsize=2)
def _noise(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The noise table: (length,) standard normal numbers, always the same."""
    numbers = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    return torch.from_numpy(numbers).to(device, dtype)
