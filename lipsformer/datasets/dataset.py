"""The rules of a dataset: which splits are used for what, which classes there are, and what is held out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.errors import InputError

from .folder import FolderLayout
from .layout import SPLITS, Layout, Listing
from .split import Split
from .tar_shards import ShardLayout, is_pattern

__all__ = ["ImageFolder", "open_dataset", "open_labeled"]

HELD_OUT_PERCENT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A dataset to train on. `validation` is val/, or else test/, or else a tenth of train, chosen by file name."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split


def open_dataset(root: Path) -> ImageFolder:
    """Reads the names of the images in a folder, or in tar shards; classes come from the training split alone.

    `root` is a folder of class folders or of shards, or the path of shards with braces.

    Raises:
        InputError: if there is no such folder, a class is empty or fewer than two remain, or another split has a class
            that training does not know.
    """
    layout = _layout(root)
    if layout.splits and "train" not in layout.splits:
        found = ", ".join(sorted(layout.splits))
        raise InputError(f"{root}: has {found} but no train {layout.unit}; add {layout.example('train')}")
    name = "train" if layout.splits else None
    listing = layout.read(name)
    classes = listing.classes
    if len(classes) < 2:
        raise InputError(
            f"{layout.place(name)}: {len(classes)} {layout.classes}, at least 2 are needed; "
            f"put images into {layout.example(name)}"
        )
    for place, count in zip(listing.places, _counts(listing), strict=True):
        if not count:
            raise InputError(f"{place}: holds no images; add some or remove the {layout.unit}")
    train = _labeled("train", listing, classes)
    for name in ("val", "test"):
        if name in layout.splits:
            validation = _labeled(name, layout.read(name), classes)
            if not len(validation):
                raise InputError(f"{layout.place(name)}: holds no images; add some or remove the {layout.unit}")
            return ImageFolder(root=layout.root, classes=classes, train=train, validation=validation)
    kept, held_out = _hold_out(train, root)
    return ImageFolder(root=layout.root, classes=classes, train=kept, validation=held_out)


def open_labeled(root: Path, classes: Sequence[str], split: str | None = None) -> Split:
    """The labeled images to evaluate a model of `classes` on.

    `split` names a split; by default test, else val, else train, else all that lies directly in `root`.

    Raises:
        InputError: if the folder, the split or the images are missing, or a class is not the model's.
    """
    layout = _layout(root)
    if split is not None:
        name: str | None = SPLITS.get(split, split)
        if name not in layout.splits:
            found = ", ".join(sorted(layout.splits)) or "none"
            raise InputError(f"{root}: has no split '{split}'; it has {found}")
    else:
        name = next((name for name in ("test", "val", "train") if name in layout.splits), None)
    labeled = _labeled(name or "all", layout.read(name), tuple(classes))
    if not len(labeled):
        raise InputError(f"{layout.place(name)}: holds no images; put them into {layout.example(name)}")
    return labeled


def _layout(root: Path) -> Layout:
    if root.is_dir():
        return ShardLayout.find(root) or FolderLayout.find(root)
    if is_pattern(str(root)):
        return ShardLayout.from_pattern(root)
    raise InputError(f"{root}: no such folder; give one with a sub-folder of images for each class")


def _counts(listing: Listing) -> NDArray[np.int64]:
    """Images of each class."""
    return np.bincount(listing.labels, minlength=len(listing.classes))


def _labeled(name: str, listing: Listing, classes: tuple[str, ...]) -> Split:
    """The listing as a split whose labels count in `classes`. A class without images may be unknown."""
    index = {label: position for position, label in enumerate(classes)}
    for label, place, count in zip(listing.classes, listing.places, _counts(listing), strict=True):
        if count and label not in index:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise InputError(f"{place}: class '{label}' is unknown; rename or remove it (known: {known})")
    renumbered = np.array([index.get(label, -1) for label in listing.classes], np.int64)
    return Split(
        name=name,
        labels=renumbered[listing.labels],
        source=listing.source,
        members=np.arange(len(listing.labels), dtype=np.int64),
    )


def _hold_out(train: Split, root: Path) -> tuple[Split, Split]:
    """Takes a tenth of each class (at least one image of those that have two), by a hash of the image's name.

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
