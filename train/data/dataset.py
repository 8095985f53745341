"""Training and validation images as batches of uint8 pixels. The workers only decode, crop and flip.

An unreadable image does not stop a training. The next readable image in the listing replaces it; in validation it is
left out. Either way its name is passed on.
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
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores
from lipsformer.train.distributed import DistributedContext
from lipsformer.train.recipe import Recipe

from .crops import Crops, Shifts
from .rng import Stream, generator
from .sampler import EpochSampler, split_batch

__all__ = [
    "Batch",
    "TrainingBatchSampler",
    "TrainingImages",
    "ValidationImages",
    "ValidationLoader",
    "collate",
    "load_training",
    "usable_workers",
]

MAX_CACHED_BYTES = 2**28  # of pixels, of a split, that stay in memory between the epochs
MAX_UNREADABLE = 100  # images in a row; with more, the dataset itself must be broken

Pixels = NDArray[np.uint8]
Key = tuple[int, int, int]  # (epoch, position in the epoch, index of the image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """Pixels (S, S, 3), or None if unreadable; a label, or the image's index; messages about unreadable images."""

    pixels: Pixels | None
    label: int
    unreadable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pixels (B, S, S, 3) uint8, labels (B,) int64 (or the images' indices), and messages about unreadable images.

    `missing` counts the images without pixels.
    """

    pixels: Tensor
    labels: Tensor
    unreadable: tuple[str, ...] = ()
    missing: int = 0

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, so that copies to the GPU overlap with compute; the loader calls this."""
        return dataclasses.replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


class TrainingImages(Dataset[LoadedImage]):
    """Random crops or shifts, each a function of (seed, epoch, position): the workers keep nothing but pixels."""

    def __init__(self, split: Split, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.split = split
        self.recipe = recipe
        self.crops: Crops | Shifts
        if recipe.shift:
            keep = len(split) * preprocessing.image_size**2 * 3 <= MAX_CACHED_BYTES
            self.crops = Shifts(preprocessing, shift=recipe.shift, hflip=recipe.hflip, keep=keep)
        else:
            self.crops = Crops(preprocessing=preprocessing, scale=recipe.crop_scale, hflip=recipe.hflip)

    def __getitem__(self, key: Key) -> LoadedImage:
        epoch, position, index = key
        messages: list[str] = []  # about unreadable images, which the next readable one replaces
        for candidate in range(index, index + min(MAX_UNREADABLE, len(self.split))):
            at = candidate % len(self.split)
            rng = generator(self.recipe.seed, Stream.CROP, epoch, position)
            try:
                pixels = self.crops.read(self.split, at, rng)
            except InputError as error:
                messages.append(str(error))
                continue
            return LoadedImage(pixels=pixels, label=int(self.split.labels[at]), unreadable=tuple(messages))
        return LoadedImage(pixels=None, label=0, unreadable=tuple(messages))


class ValidationImages(Dataset[LoadedImage]):
    """Preprocessed images, exactly as prediction and serving see them. Their labels are their indices."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> LoadedImage:
        try:
            pixels = self.preprocessing.read(self.split.encoded(index), name=self.split.where(index))
            return LoadedImage(pixels=pixels, label=index)
        except InputError as error:
            return LoadedImage(pixels=None, label=index, unreadable=(str(error),))


class TrainingBatchSampler(Sampler[list[Key]]):
    """The keys of this process's share of each batch, from step `start` to the end of the training."""

    def __init__(self, sampler: EpochSampler, distributed: DistributedContext, start: int = 0) -> None:
        self.sampler = sampler
        self.distributed = distributed
        self.start = start

    def __len__(self) -> int:
        return self.sampler.total - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.sampler.total):
            epoch, images = step // self.sampler.steps_per_epoch, self.sampler.images(step)
            keys = [(epoch, *key) for key in zip(self.sampler.positions(step), images.tolist(), strict=True)]
            yield keys[split_batch(len(keys), self.distributed.world_size)[self.distributed.rank]]


class ValidationLoader:
    """This process's share of the validation images in batches. A small set is decoded once and cached."""

    def __init__(self, images: ValidationImages, recipe: Recipe, distributed: DistributedContext) -> None:
        workers = usable_workers(recipe.workers)
        share = range(distributed.rank, len(images), distributed.world_size)
        cache = len(share) * images.preprocessing.image_size**2 * 3 <= MAX_CACHED_BYTES
        self.cached: list[Batch] | None = [] if cache else None
        self.loader: DataLoader[Any] = DataLoader(
            images,
            max(1, recipe.batch_size // (distributed.world_size * recipe.grad_accum_steps)),
            sampler=list(share),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=distributed.device.type == "cuda",
            persistent_workers=workers > 0 and not cache,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.cached is None:
            return iter(self.loader)
        if not self.cached:
            self.cached = list(self.loader)
        return iter(self.cached)


def load_training(images: TrainingImages, batches: TrainingBatchSampler) -> Iterator[Batch]:
    """This process's share of all batches of a training, in order and without a pause between epochs.

    Raises:
        InputError: if too many images in a row cannot be read.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=usable_workers(images.recipe.workers),
        collate_fn=collate,
        pin_memory=batches.distributed.device.type == "cuda",
    )
    for batch in loader:
        if batch.missing:
            known = len(set(batch.unreadable))
            raise InputError(f"{batch.unreadable[0]}; {known} images in a row cannot be read")
        yield batch


def collate(images: Sequence[LoadedImage]) -> Batch:
    """A batch of the images that could be read."""
    read = [(image.pixels, image.label) for image in images if image.pixels is not None]
    unreadable = tuple(message for image in images for message in image.unreadable)
    missing = len(images) - len(read)
    if not read:
        return Batch(torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), unreadable, missing)
    pixels, labels = zip(*read, strict=True)
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), unreadable, missing)


def usable_workers(workers: int) -> int:
    return min(workers, cores())
