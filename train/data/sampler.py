"""The images of each step, and how processes share a batch."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.errors import InputError
from lipsformer.train.recipe import Recipe

from .rng import Stream, generator

__all__ = ["EpochSampler", "split_batch"]


class EpochSampler:
    """The images of every step of a training, as a function of (seed, epoch) alone.

    Each epoch shows every image once, in batches of at most `batch_size` whose sizes differ by at most one. With
    `balanced` it shows as many images, but every class equally often, and no image again before all of its class.
    """

    def __init__(self, labels: NDArray[np.int64], recipe: Recipe) -> None:
        self.labels = labels
        self.recipe = recipe
        self.steps_per_epoch = math.ceil(len(labels) / recipe.batch_size)
        self.total = self.steps_per_epoch * recipe.epochs
        self._of_epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def positions(self, step: int) -> range:
        """The positions within its epoch of the images of `step` (counted over all epochs)."""
        return self._bounds(step % self.steps_per_epoch)

    def images(self, step: int) -> NDArray[np.int64]:
        """The indices of the images of `step`, in batch order."""
        positions = self.positions(step)
        return self._of_epoch(step // self.steps_per_epoch)[positions.start : positions.stop]

    def check_shares(self, processes: int) -> None:
        """Checks that `processes` processes can share every batch evenly.

        Raises:
            InputError: if they do not divide the batch size, or some part would have fewer than two images.
        """
        steps, batch = self.recipe.grad_accum_steps, self.recipe.batch_size
        parts = processes * steps
        among = f"{processes} processes" + (f" x {steps} parts" if steps > 1 else "")
        if batch % parts:
            near = max(parts, round(batch / parts) * parts)
            raise InputError(f"recipe: batch_size={batch} cannot be shared evenly by {among}; use {near}")
        smallest = len(self.labels) // self.steps_per_epoch
        if smallest < 2 * parts and parts > 1:
            raise InputError(
                f"recipe: batch_size={batch}: batches of {smallest} images are too few for {among}, two images each; "
                "use a larger batch, or fewer processes or parts"
            )

    def _bounds(self, index: int) -> range:
        share, rest = divmod(len(self.labels), self.steps_per_epoch)
        start = index * share + min(index, rest)
        return range(start, start + share + (index < rest))

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        rng = generator(self.recipe.seed, Stream.ORDER, epoch)
        return self._balanced(rng) if self.recipe.balanced else rng.permutation(len(self.labels))

    def _balanced(self, rng: np.random.Generator) -> NDArray[np.int64]:
        classes = int(self.labels.max()) + 1
        quotas = np.full(classes, len(self.labels) // classes)
        quotas[rng.permutation(classes)[: len(self.labels) % classes]] += 1
        chosen = []
        for label, quota in enumerate(quotas):
            members = np.flatnonzero(self.labels == label)
            rounds = math.ceil(quota / len(members))
            chosen.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:quota])
        return rng.permutation(np.concatenate(chosen))


def split_batch(size: int, parts: int) -> list[slice]:
    """Splits a batch of `size` images into `parts` contiguous slices, between pairs.

    Images 2j and 2j + 1 are partners of mixup and CutMix.
    """
    pairs = math.ceil(size / 2)
    ends = [min(2 * (pairs * part // parts), size) for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]
