"""The rules of a dataset: which split is used for what, which classes there are, and what is held out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lipsformer.system.errors import InputError

from .folder import FolderReader
from .left_out import LeftOut
from .reader import SPLITS, Reader, Split
from .tar_shards import ShardReader, is_pattern

__all__ = ["ImageDataset", "open_dataset", "open_labeled", "open_reader"]

HELD_OUT_PERCENT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """A dataset to train on. `validation` is val/, else test/, else a tenth of train, chosen by file name.

    `left_out` counts what was found in the dataset and is not used.
    """

    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split
    left_out: LeftOut


def open_dataset(root: Path) -> ImageDataset:
    """Lists the images of a dataset to train on. The classes are those of the training split.

    `root` is a folder of class folders or of tar shards, or the path of shards with braces.

    Raises:
        InputError: if there is no such folder, a class is empty, there are fewer than two, or another split has a
            class that the training split lacks.
    """
    reader = open_reader(root)
    if reader.splits and "train" not in reader.splits:
        found = ", ".join(sorted(reader.splits))
        raise InputError(f"{root}: has {found} but no train split; add {reader.example('train')}")
    name = "train" if reader.splits else None
    train = dataclasses.replace(reader.read(name), name="train")
    if len(train.classes) < 2:
        found = f"{len(train.classes)} class{'' if len(train.classes) == 1 else 'es'} found"
        raise InputError(f"{reader.place(name)}: {found}, at least 2 are needed; add images as {reader.example(name)}")
    for label, count in zip(train.classes, train.counts(), strict=True):
        if not count:
            raise InputError(f"{reader.place(name)}/{label}: no images; add some or remove this class")
    left_out = LeftOut()
    for part in (reader.left_out, train.left_out):
        left_out.update(part)
    for name in ("val", "test"):
        if name in reader.splits:
            validation = _relabeled(reader.read(name), train.classes)
            if not len(validation):
                raise InputError(f"{reader.place(name)}: no images; add some or remove this split")
            left_out.update(validation.left_out)
            return ImageDataset(
                root=reader.root, classes=train.classes, train=train, validation=validation, left_out=left_out
            )
    kept, held_out = _hold_out(train, root)
    return ImageDataset(root=reader.root, classes=train.classes, train=kept, validation=held_out, left_out=left_out)


def open_labeled(root: Path, classes: Sequence[str], split: str | None = None) -> Split:
    """Lists the labeled images to evaluate a model of `classes` on.

    `split` names a split; by default test, else val, else train, else all images of a dataset without splits.

    Raises:
        InputError: if the folder, the split or the images are missing, or the model does not know a class.
    """
    reader = open_reader(root)
    if split is not None:
        name: str | None = SPLITS.get(split, split)
        if name not in reader.splits:
            found = ", ".join(sorted(reader.splits)) or "none"
            raise InputError(f"{root}: no split '{split}'; choose one of: {found}")
    else:
        name = next((name for name in ("test", "val", "train") if name in reader.splits), None)
    labeled = _relabeled(reader.read(name), tuple(classes))
    labeled.left_out.update(reader.left_out)
    if not len(labeled):
        raise InputError(f"{reader.place(name)}: no images; add some as {reader.example(name)}")
    return labeled


def open_reader(root: Path) -> Reader:
    """The reader for `root`: of tar shards or of class folders.

    Raises:
        InputError: if there is no such folder, or a shard is missing.
    """
    if root.is_dir():
        return ShardReader.find(root) or FolderReader.find(root)
    if is_pattern(str(root)):
        return ShardReader.from_pattern(root)
    raise InputError(f"{root}: no such folder; give one with a sub-folder of images for each class")


def _relabeled(split: Split, classes: tuple[str, ...]) -> Split:
    """The split with its labels as indices into `classes`. A class without images may be unknown."""
    index = {label: position for position, label in enumerate(classes)}
    for label, count in enumerate(split.counts()):
        name = split.classes[label]
        if count and name not in index:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            where = split.where(int(np.argmax(split.labels == label)))
            raise InputError(f"{where}: unknown class '{name}'; rename or remove the class (known: {known})")
    renumbered = np.array([index.get(label, -1) for label in split.classes], np.int64)
    return dataclasses.replace(split, classes=classes, labels=renumbered[split.labels])


def _hold_out(train: Split, root: Path) -> tuple[Split, Split]:
    """Holds out a tenth of each class (at least one image of those that have two), by a hash of the image's name.

    The choice does not depend on the order, the machine or the seed, so it is the same for every run.
    """
    ranks = [hashlib.sha256(os.fsencode(name)).digest() for name in train.names()]
    chosen = np.zeros(len(train), bool)
    by_class = np.argsort(train.labels, kind="stable")
    for positions in np.split(by_class, np.flatnonzero(np.diff(train.labels[by_class])) + 1):
        members = sorted(positions.tolist(), key=ranks.__getitem__)
        count = max(1, round(len(members) * HELD_OUT_PERCENT / 100)) if len(members) > 1 else 0
        chosen[members[:count]] = True
    if not chosen.any():
        raise InputError(f"{root}: one image per class leaves none to validate on; add images")
    held_out = dataclasses.replace(train.select(np.flatnonzero(chosen)), name="held-out tenth of train")
    return train.select(np.flatnonzero(~chosen)), held_out
