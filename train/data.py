"""Training and validation images as batches of uint8 pixels; worker processes decode, crop and flip, nothing more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lipsformer.datasets import Split
from lipsformer.errors import InputError
from lipsformer.machine import cores
from lipsformer.preprocessing import FILTERS, Preprocessing, to_rgb

from .draws import Purpose, generator
from .recipe import Recipe

__all__ = [
    "Batch",
    "Batches",
    "TrainingBatches",
    "TrainingImages",
    "ValidationImages",
    "load_training",
    "load_validation",
]

CROP_RATIO = (3 / 4, 4 / 3)  # width / height, as in Inception's random resized crop (Szegedy et al. 2015)
KEPT_BYTES = 2**28  # validation pixels up to this size stay in memory between the epochs

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Key = tuple[int, int]  # (epoch, index of the image)


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded. A worker hands it over as data: an exception would lose its type there."""

    message: str


Sample = tuple[Pixels, int] | Unreadable


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pixels (B, S, S, 3) uint8 and labels (B,) int64."""

    pixels: Tensor
    labels: Tensor

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from where a GPU reads while the CPU goes on; the loader calls this."""
        return Batch(self.pixels.pin_memory(), self.labels.pin_memory())


class TrainingImages(Dataset[Sample]):
    """Random crops, each a function of (seed, epoch, index), so that the workers hold no state."""

    def __init__(self, split: Split, recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.split = split
        self.recipe = recipe
        self.size = preprocessing.image_size
        self.filter = FILTERS[preprocessing.interpolation]

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        try:
            image = _read(self.split, index)
        except InputError as error:
            return Unreadable(str(error))
        draws = generator(self.recipe.seed, Purpose.CROP, epoch, index)
        box = random_box(draws, image.size, self.recipe.crop_scale)
        # reducing_gap first shrinks a large crop by a whole factor: faster, and hard to tell apart from 2.0 on.
        crop = image.resize((self.size, self.size), self.filter, box=box, reducing_gap=2.0)
        if draws.random() < self.recipe.flip:
            crop = ImageOps.mirror(crop)
        return np.asarray(crop), int(self.split.labels[index])


class ValidationImages(Dataset[Sample]):
    """Images through the toolkit's one preprocessing: what prediction and serving will see."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.preprocessing.apply(_read(self.split, index)), int(self.split.labels[index])
        except InputError as error:
            return Unreadable(str(error))


class TrainingBatches(Sampler[list[Key]]):
    """The keys of the batches of steps `start`, `start` + 1, ... to the end of the training.

    Each epoch shows every image once, in an order that is a function of (seed, epoch), in batches of at most
    `batch_size` whose sizes differ by at most one.
    """

    def __init__(self, images: int, recipe: Recipe, start: int = 0) -> None:
        self.images = images
        self.recipe = recipe
        self.start = start
        self.steps_per_epoch = math.ceil(images / recipe.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        first_epoch, skip = divmod(self.start, self.steps_per_epoch)
        for epoch in range(first_epoch, self.recipe.epochs):
            order = generator(self.recipe.seed, Purpose.ORDER, epoch).permutation(self.images)
            for indices in np.array_split(order, self.steps_per_epoch)[skip:]:
                yield [(epoch, int(index)) for index in indices]
            skip = 0


class Batches:
    """The batches of a loader; iterating raises `InputError`, naming the file, when one holds an unreadable image."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, Unreadable):
                raise InputError(f"{batch.message}, or remove it")
            yield batch


class KeptBatches:
    """Batches that are read once and then kept in memory."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        if not self.kept:
            self.kept = list(self.batches)
        return iter(self.kept)


def load_training(images: TrainingImages, order: TrainingBatches, *, pin: bool) -> Iterator[Batch]:
    """All batches of a training in order, one epoch after the other without a pause between them."""
    workers = _usable(images.recipe.workers)
    return iter(
        Batches(DataLoader(images, batch_sampler=order, num_workers=workers, collate_fn=collate, pin_memory=pin))
    )


def load_validation(images: ValidationImages, recipe: Recipe, *, pin: bool) -> Batches | KeptBatches:
    """The validation batches, to be read once per epoch; a small set is decoded only once."""
    workers = _usable(recipe.workers)
    keep = len(images) * images.preprocessing.image_size**2 * 3 <= KEPT_BYTES
    loader = DataLoader(
        images,
        recipe.batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=workers > 0 and not keep,
    )
    return KeptBatches(Batches(loader)) if keep else Batches(loader)


def random_box(
    draws: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom) of an image of `size` = (width, height), in pixels, not whole ones.

    It shows a share of the area that is uniform in `scale`, with a width to height ratio log-uniform in 3/4 to 4/3,
    both cut where the image ends.
    """
    area = draws.uniform(*scale) * size[0] * size[1]
    ratio = math.exp(draws.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    width, height = min(math.sqrt(area * ratio), size[0]), min(math.sqrt(area / ratio), size[1])
    left, top = draws.uniform(0, size[0] - width), draws.uniform(0, size[1] - height)
    return left, top, left + width, top + height


def collate(samples: Sequence[Sample]) -> Batch | Unreadable:
    """Joins samples into a batch, or gives the first that is unreadable."""
    pixels, labels = [], []
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
        pixels.append(torch.from_numpy(sample[0].copy()))
        labels.append(sample[1])
    return Batch(torch.stack(pixels), torch.tensor(labels))


def _read(split: Split, index: int) -> Image.Image:
    image = split.open(index)
    try:
        return to_rgb(image)
    except InputError as error:
        raise InputError(f"{split.where(index)}: {error}") from None


def _usable(workers: int) -> int:
    return min(workers, cores())
