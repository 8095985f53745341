"""Training and validation images as batches of uint8 pixels; worker processes decode, crop and hflip, nothing more.

An image that cannot be read ends nothing: in training its neighbor in the listing stands in for it, in validation it
is left out, and its name is handed on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lipsformer.datasets import Split
from lipsformer.images.preprocessing import FILTERS, Preprocessing
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores
from lipsformer.train.distributed import DistributedContext
from lipsformer.train.recipe import Recipe

from .crops import Crops, read_rgb
from .rng import Stream, generator
from .sampler import EpochSampler, split_batch

__all__ = [
    "Batch",
    "TrainingBatchSampler",
    "TrainingImages",
    "ValidationBatchSampler",
    "ValidationImages",
    "load_training",
]

KEPT_BYTES = 2**28  # validation pixels up to this size stay in memory between the epochs
MOST_UNREADABLE = 100  # images in a row; beyond, the dataset itself must be broken

Pixels = NDArray[np.uint8]
Key = tuple[int, int, int]  # (epoch, position in the epoch's order, index of the image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One image (S, S, 3) and its label, or the index of its answer; and what could not be read on the way to it."""

    pixels: Pixels | None
    label: int
    unreadable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pixels (B, S, S, 3) uint8, labels (B,) int64 (or indices of the images), and images that could not be read.

    `missing` counts the samples that have no pixels.
    """

    pixels: Tensor
    labels: Tensor
    unreadable: tuple[str, ...] = ()
    missing: int = 0

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from where a GPU reads while the CPU goes on; the loader calls this."""
        return dataclasses.replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


class TrainingImages(Dataset[Sample]):
    """Random crops, each a function of (seed, epoch, position), so that the workers hold no state."""

    def __init__(self, split: Split, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.split = split
        self.recipe = recipe
        self.crops = Crops(
            size=preprocessing.image_size,
            scale=recipe.crop_scale,
            hflip=recipe.hflip,
            resample=FILTERS[preprocessing.interpolation],
        )

    def __getitem__(self, key: Key) -> Sample:
        epoch, position, index = key
        messages: list[str] = []  # about images that cannot be read; the next one that can stands in for them
        for candidate in range(index, index + min(MOST_UNREADABLE, len(self.split))):
            at = candidate % len(self.split)
            rng = generator(self.recipe.seed, Stream.CROP, epoch, position)
            try:
                pixels = self.crops.read(self.split, at, rng)
            except InputError as error:
                messages.append(str(error))
                continue
            return Sample(pixels=pixels, label=int(self.split.labels[at]), unreadable=tuple(messages))
        return Sample(pixels=None, label=0, unreadable=tuple(messages))


class ValidationImages(Dataset[Sample]):
    """Images through the toolkit's one preprocessing: what prediction and serving will see. Labels are indices."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        try:
            return Sample(pixels=self.preprocessing.apply(read_rgb(self.split, index)), label=index)
        except InputError as error:
            return Sample(pixels=None, label=index, unreadable=(str(error),))


class TrainingBatchSampler(Sampler[list[Key]]):
    """The keys of this process's share of the batches of steps `start`, `start` + 1, ... to the training's end."""

    def __init__(self, sampler: EpochSampler, distributed: DistributedContext, start: int = 0) -> None:
        self.sampler = sampler
        self.distributed = distributed
        self.start = start

    def __len__(self) -> int:
        return self.sampler.total - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.sampler.total):
            epoch, positions, images = (
                step // self.sampler.steps_per_epoch,
                self.sampler.positions(step),
                self.sampler.images(step),
            )
            share = split_batch(len(images), self.distributed.world_size)[self.distributed.rank]
            yield [(epoch, positions[at], int(images[at])) for at in range(share.start, share.stop)]


class ValidationBatchSampler:
    """This process's share of the validation images in batches; a small set is decoded only once."""

    def __init__(self, images: ValidationImages, recipe: Recipe, distributed: DistributedContext) -> None:
        workers = _usable(recipe.workers)
        share = range(distributed.rank, len(images), distributed.world_size)
        keep = len(share) * images.preprocessing.image_size**2 * 3 <= KEPT_BYTES
        self.kept: list[Batch] | None = [] if keep else None
        self.loader: DataLoader[Any] = DataLoader(
            images,
            max(1, recipe.batch_size // (distributed.world_size * recipe.grad_accum_steps)),
            sampler=list(share),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=distributed.device.type == "cuda",
            persistent_workers=workers > 0 and not keep,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.kept is None:
            return iter(self.loader)
        if not self.kept:
            self.kept = list(self.loader)
        return iter(self.kept)


def load_training(images: TrainingImages, batches: TrainingBatchSampler) -> Iterator[Batch]:
    """This process's share of all batches of a training in order, without a pause between the epochs.

    Raises:
        InputError: if so many images in a row cannot be read that none stands in for them.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=_usable(images.recipe.workers),
        collate_fn=collate,
        pin_memory=batches.distributed.device.type == "cuda",
    )
    for batch in loader:
        if batch.missing:
            known = len(set(batch.unreadable))
            raise InputError(f"{batch.unreadable[0]}; {known} images in a row cannot be read")
        yield batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Joins the samples that could be read into a batch."""
    read = [(torch.from_numpy(s.pixels.copy()), s.label) for s in samples if s.pixels is not None]
    unreadable = tuple(message for sample in samples for message in sample.unreadable)
    missing = len(samples) - len(read)
    if not read:
        return Batch(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), unreadable, missing)
    pixels, labels = zip(*read, strict=True)
    return Batch(torch.stack(pixels), torch.tensor(labels), unreadable, missing)


def _usable(workers: int) -> int:
    return min(workers, cores())
