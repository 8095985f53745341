"""Reading every image of a dataset once, into records."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.dataset import open_reader
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.options import DatasetOptions
from lipsformer.datasets.reader import Split
from lipsformer.images.open import ImageError
from lipsformer.system.console import track
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores

from .fingerprint import RECORD, Photo, describe, read_photo

__all__ = ["NAMED", "READ", "Scan", "read_splits", "scan"]

FEW = 20  # messages kept for each reason
CHUNK = 64  # images that a thread reads at a time
NAMED = ("format", "mode", "profile")  # properties of a photo that are names
USUAL_ORDER = ("train", "val", "test")
READ, UNREADABLE_FILE = "", "cannot_be_read"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """N images of all splits, in their order. `records` (N,) of type `RECORD` are zero for images that cannot be read.

    `labels` (N,) are indices into `classes`, `split_of` (N,) into `splits`. `codes` maps each of `NAMED` and "reason"
    to indices (N,) into `names` of it; an image that was read has the reason "". `turned` (N,) says whether the EXIF
    orientation is another than upright. `problems` has the messages of unreadable images, up to `FEW` for each reason.
    """

    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    split_of: NDArray[np.int64]
    starts: tuple[int, ...]
    records: NDArray[np.void]
    codes: dict[str, NDArray[np.uint16]]
    names: dict[str, tuple[str, ...]]
    turned: NDArray[np.bool_]
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def read(self) -> NDArray[np.bool_]:
        """(N,) whether the image could be read."""
        read: NDArray[np.bool_] = np.equal(self.codes["reason"], self.names["reason"].index(READ))
        return read

    def place(self, index: int) -> tuple[Split, int]:
        """The split of an image, and its index there."""
        number = int(self.split_of[index])
        return self.splits[number], index - self.starts[number]

    def name(self, index: int) -> str:
        """The name of an image, relative to the dataset's root."""
        split, position = self.place(index)
        return split.image_name(position)


def read_splits(data: Path, options: DatasetOptions) -> tuple[tuple[Split, ...], LeftOut]:
    """All splits of a dataset, and what was left out of them.

    Raises:
        InputError: if it cannot be read, or has no images.
    """
    reader = open_reader(data, options)
    names = sorted(reader.splits, key=lambda name: ((*USUAL_ORDER, name).index(name), name))
    splits = tuple(reader.read(name) for name in names or (None,))
    if not any(map(len, splits)):
        raise InputError(f"{data}: no images; add some as {reader.example(names[0] if names else None)}")
    return splits, LeftOut.joined([reader.left_out, *(split.left_out for split in splits)])


def scan(splits: Sequence[Split]) -> Scan:
    """Reads each image of `splits` once, in threads: Pillow decodes without Python's global lock."""
    classes = tuple(dict.fromkeys(name for split in splits for name in split.classes))
    numbers = {name: number for number, name in enumerate(classes)}
    total = sum(map(len, splits))
    records = np.zeros(total, RECORD)
    turned = np.zeros(total, bool)
    codes = {name: np.zeros(total, np.uint16) for name in (*NAMED, "reason")}
    names: dict[str, dict[str, int]] = {name: {} for name in codes}
    problems: dict[int, str] = {}
    named = collections.Counter[str]()

    def note(index: int, found: Photo | InputError) -> None:
        reason = READ
        if isinstance(found, Photo):
            turned[index] = found.turned
            for name in NAMED:
                codes[name][index] = names[name].setdefault(getattr(found, name), len(names[name]))
        else:
            reason = found.reason if isinstance(found, ImageError) else UNREADABLE_FILE
            named[reason] += 1
            if named[reason] <= FEW:
                problems[index] = str(found)
        codes["reason"][index] = names["reason"].setdefault(reason, len(names["reason"]))

    with track("check", total) as advance:
        at = 0
        for chunk in _chunks(splits):
            for index, found in enumerate(chunk.found, at):
                note(index, found)
            read = [index for index, found in enumerate(chunk.found, at) if isinstance(found, Photo)]
            records[read] = chunk.records
            at += len(chunk.found)
            advance(len(chunk.found), "")
    names["reason"].setdefault(READ, len(names["reason"]))
    return Scan(
        splits=tuple(splits),
        classes=classes,
        labels=np.concatenate([np.array([numbers[name] for name in s.classes], np.int64)[s.labels] for s in splits]),
        split_of=np.repeat(np.arange(len(splits)), [len(split) for split in splits]),
        starts=tuple(np.cumsum([0, *map(len, splits)]).tolist()),
        records=records,
        codes=codes,
        names={name: tuple(found) for name, found in names.items()},
        turned=turned,
        problems=problems,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Consecutive images: each as a photo or why it cannot be read, and the records of the photos."""

    found: list[Photo | InputError]
    records: NDArray[np.void]


def _chunks(splits: Sequence[Split]) -> Iterator[_Chunk]:
    """The images of all splits in order, read in threads a few chunks ahead."""
    with ThreadPoolExecutor(cores()) as pool:
        ahead = collections.deque[Future[_Chunk]]()
        try:
            for split in splits:
                for start in range(0, len(split), CHUNK):
                    ahead.append(pool.submit(_read, split, range(start, min(start + CHUNK, len(split)))))
                    if len(ahead) > 2 * cores():
                        yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # as after Ctrl-C


def _read(split: Split, positions: range) -> _Chunk:
    found: list[Photo | InputError] = []
    for position in positions:
        try:
            found.append(read_photo(split.encoded(position), split.where(position)))
        except InputError as error:
            found.append(error)
    photos = [photo for photo in found if isinstance(photo, Photo)]
    return _Chunk(found=found, records=describe(photos) if photos else np.zeros(0, RECORD))
