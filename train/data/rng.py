"""Counter-based random numbers: each is a function of the seed and of its use, never of what was drawn before.

A resumed run, or one with another number of workers, therefore draws exactly what an uninterrupted run draws, and no
generator state needs to be saved.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Self

import numpy as np
import torch

__all__ = ["PerImage", "Stream", "generator", "seed_torch"]


class Stream(enum.IntEnum):
    """Independent streams of random numbers, one per use."""

    WEIGHTS = 0
    ORDER = 1
    CROP = 2
    AUGMENT = 4
    MIX = 5
    DROP_PATH = 6
    ERASE = 7


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator for (seed, stream, up to three counters), by the Philox cipher (Salmon et al. 2011)."""
    high = [*counters, 0, 0, 0][:3]
    # The lowest word counts the numbers that this generator has given.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, *high]))


def seed_torch(seed: int, stream: Stream, *counters: int) -> None:
    """Seeds PyTorch's global generators, on every device, for (seed, stream, counters)."""
    torch.manual_seed(int(generator(seed, stream, *counters).integers(2**63)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerImage:
    """Arrays with a row for each image of a batch."""

    def __getitem__(self, rows: slice) -> Self:
        values = {field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)
