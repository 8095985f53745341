"""Counter-based randomness: every draw is a function of the seed and of what it is for, never of what was drawn before.

A run that is resumed, or that has another number of workers, so draws exactly what an uninterrupted one would have
drawn, and no generator's state needs to be saved.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Self

import numpy as np
import torch

__all__ = ["Rows", "Stream", "generator", "seed_torch"]


class Stream(enum.IntEnum):
    """What a draw is for; draws for different purposes are independent."""

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
    # The lowest word counts the draws from this generator.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, *high]))


def seed_torch(seed: int, stream: Stream, *counters: int) -> None:
    """Seeds PyTorch's global generators, on every device, for (seed, stream, counters)."""
    torch.manual_seed(int(generator(seed, stream, *counters).integers(2**63)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Arrays that have a row for each image of a batch."""

    def rows(self, rows: slice) -> Self:
        """The same of `rows` alone."""
        cut = {field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **cut)
