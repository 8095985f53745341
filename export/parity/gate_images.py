"""The images of the parity gate: real ones, evenly spread over a dataset, and hard ones that no camera takes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets import DatasetOptions, Split, UnlabeledImages, open_labeled, open_unlabeled
from lipsformer.datasets.spread import spread
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.runtimes import Pixels
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores

__all__ = ["GateImages", "ImageSource", "hard_inputs"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GateImages:
    """Network input for the gate: `photos` (N, S, S, 3), named `hard` inputs (M, S, S, 3), and the source's name.

    `labels` (N,) are the classes of the photos, if known.
    """

    photos: Pixels
    hard: Pixels
    hard_names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    source: str

    @classmethod
    def of(cls, photos: Pixels, labels: NDArray[np.int64] | None, source: str) -> GateImages:
        """Add the hard inputs to photos; two of them are made from the first photo."""
        hard = hard_inputs(photos[0])
        return cls(photos=photos, hard=np.stack([*hard.values()]), hard_names=tuple(hard), labels=labels, source=source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """All images of a dataset, not yet decoded.

    `labels` (N,) are classes of the checkpoint; None if the data has no labels.
    """

    images: Split | UnlabeledImages
    labels: NDArray[np.int64] | None
    name: str

    @classmethod
    def find(
        cls, data: Path, classes: Sequence[str], split: str | None = None, options: DatasetOptions | None = None
    ) -> ImageSource:
        """Find the images of `data`, with labels if it is a dataset with the checkpoint's classes.

        Takes `split` if it exists; else test, else val, else all images.

        Raises:
            InputError: if there are no images.
        """
        if split is not None:
            with contextlib.suppress(InputError):
                return cls._labeled(data, open_labeled(data, classes, split, options))
        try:
            return cls._labeled(data, open_labeled(data, classes, options=options))
        except InputError as reason:
            try:
                found = open_unlabeled(data, options)
            except InputError:
                raise InputError(f"{data}: no usable images ({reason}); give a folder of real photos") from None
            return cls(images=found, labels=None, name=str(data))

    @classmethod
    def _labeled(cls, data: Path, split: Split) -> ImageSource:
        return cls(images=split, labels=split.labels, name=f"{data} ({split.name})")

    def decode(
        self, positions: NDArray[np.int64], preprocessing: Preprocessing
    ) -> tuple[Pixels, NDArray[np.int64] | None]:
        """Network input (N, S, S, 3) and labels of the images at `positions`, without those that cannot be read.

        Raises:
            InputError: if none can be read.
        """

        def prepare(position: int) -> Pixels | InputError:
            try:
                return preprocessing.read(self.images.encoded(position), name=self.images.where(position))
            except InputError as error:
                return error

        found: list[Pixels] = []
        kept: list[int] = []
        problems: list[InputError] = []
        with ThreadPoolExecutor(cores()) as pool, track("images", len(positions)) as advance:
            for position, result in zip(positions.tolist(), pool.map(prepare, positions.tolist()), strict=True):
                if isinstance(result, InputError):
                    problems.append(result)
                else:
                    found.append(result)
                    kept.append(position)
                advance(1, "")
        if not found:
            raise InputError(f"{self.name}: none of {len(problems)} images can be read; the first: {problems[0]}")
        if problems:
            say(
                f"{self.name}: {len(problems)} of {len(positions)} images cannot be read; the first: {problems[0]}",
                always=True,
            )
        return np.stack(found), None if self.labels is None else self.labels[kept]

    def gate_images(
        self, count: int, preprocessing: Preprocessing, without: NDArray[np.int64] | None = None
    ) -> GateImages:
        """Decode `count` evenly spread images for the gate; if there are fewer, their mirror images too.

        `without` lists positions to omit, if others remain.
        """
        left = np.setdiff1d(np.arange(len(self.images)), [] if without is None else without)
        if not len(left):
            left = np.arange(len(self.images))
        photos, labels = self.decode(left[spread(count, len(left))], preprocessing)
        if len(photos) < count:
            mirrored = photos[: count - len(photos), :, ::-1]
            photos = np.concatenate([photos, mirrored])
            labels = None if labels is None else np.concatenate([labels, labels[: len(mirrored)]])
        return GateImages.of(photos, labels, self.name)


def hard_inputs(photo: Pixels) -> dict[str, Pixels]:
    """Extreme inputs (S, S, 3) by name; the last two are made from `photo` (S, S, 3)."""
    return dict(_hard_inputs(photo))


def _hard_inputs(photo: Pixels) -> Iterator[tuple[str, Pixels]]:
    random = np.random.default_rng(0)
    for name, value in (("black", 0), ("white", 255), ("gray", 128)):
        yield name, np.full_like(photo, value)
    yield "uniform noise", random.integers(0, 256, photo.shape, dtype=np.uint8)
    yield "salt and pepper", _gray(random.integers(0, 2, photo.shape[:2]))
    yield "checkerboard", _gray(np.add.outer(np.arange(len(photo)), np.arange(len(photo))) % 2)
    yield "extreme contrast", np.where(photo < np.median(photo), 0, 255).astype(np.uint8)
    yield "faint contrast", np.asarray(photo // 64 + 126, np.uint8)


def _gray(white: NDArray[np.int64]) -> Pixels:
    """Pixels (S, S, 3), white where `white` (S, S) is 1 and black where it is 0."""
    return (white * 255).astype(np.uint8)[:, :, None].repeat(3, 2)
