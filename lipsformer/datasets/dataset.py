"""The rules of a dataset: which split is used for what, which classes there are, and what is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from lipsformer.bundle.class_names import normalized
from lipsformer.images.open import read_image
from lipsformer.system.errors import InputError

from .folders.folder import FolderReader
from .held_out import hold_out
from .left_out import LeftOut
from .options import DatasetOptions
from .reader import Reader, Split
from .shards.tar_shards import ShardReader, is_pattern
from .split_names import split_of
from .tables import TableReader, is_table
from .walk import find_images

__all__ = [
    "HELD_OUT",
    "ImageDataset",
    "UnlabeledImages",
    "open_dataset",
    "open_labeled",
    "open_reader",
    "open_unlabeled",
    "relabeled",
]


HELD_OUT = "held-out"  # a split of `open_labeled`


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabeledImages:
    """Images without labels: `encoded` reads the one at a position of `names`. `name` is that of their folder."""

    name: str
    names: Sequence[str]
    encoded: Callable[[int], bytes]
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """Where image `index` is, for messages."""
        return self.names[index]


def open_dataset(root: Path, options: DatasetOptions | None = None) -> ImageDataset:
    """Lists the images of a dataset to train on. The classes are those of the training split.

    `root` is a folder of class folders or of tar shards, the path of shards with braces, or a table of labels.

    Raises:
        InputError: if there is no such dataset, a class is empty, there are fewer than two, or another split has a
            class that the training split lacks.
    """
    options = options or DatasetOptions()
    reader = open_reader(root, options)
    train = _read_train(reader, root, options)
    left_out = LeftOut.joined([reader.left_out, train.left_out])
    name = _validation_split(reader, root, options)
    if name is None:
        train, validation = hold_out(train, options, root)
    else:
        validation = relabeled(reader.read(name), train.classes)
        left_out.update(validation.left_out)
        if not len(validation):
            raise InputError(f"{reader.place(name)}: no images; add some or remove this split{_left_out(validation)}")
    return ImageDataset(root=reader.root, classes=train.classes, train=train, validation=validation, left_out=left_out)


def open_labeled(
    root: Path, classes: Sequence[str], split: str | None = None, options: DatasetOptions | None = None
) -> Split:
    """Lists the labeled images to evaluate a model of `classes` on.

    `split` names a split; by default test, else what a group or fold of `options` holds out of the training split, else
    val, else train, else all images of a dataset without splits. "held-out" is what training holds out, and "all" is
    everything in a dataset without splits.

    Raises:
        InputError: if the folder, the split or the images are missing, or the model does not know a class.
    """
    options = options or DatasetOptions()
    reader = open_reader(root, options, known=classes, split=split)
    if split == HELD_OUT or (split is None and options.held_out and "test" not in reader.splits):
        train = relabeled(reader.read(_named(reader, root, "train") if reader.splits else None), tuple(classes))
        labeled = hold_out(train, options, root)[1]
    elif split is not None and (reader.splits or split != "all"):
        labeled = relabeled(reader.read(_named(reader, root, split)), tuple(classes))
    else:
        name = next((name for name in ("test", "val", "train") if name in reader.splits), None)
        if reader.splits and name is None:
            raise InputError(f"{root}: has the splits {', '.join(sorted(reader.splits))}; choose one with --split")
        labeled = relabeled(reader.read(name), tuple(classes))
    labeled.left_out.update(reader.left_out)
    if not len(labeled):
        raise InputError(f"{reader.place(split)}: no images; add some as {reader.example(split)}{_left_out(labeled)}")
    return labeled


def open_unlabeled(root: Path, options: DatasetOptions | None = None) -> UnlabeledImages:
    """Lists all images of a folder, of shards or of a table, whatever their labels and splits.

    Raises:
        InputError: if there are none, or `root` cannot be read.
    """
    if root.is_dir() and (paths := find_images(root, left_out := LeftOut())):
        return UnlabeledImages(
            name=root.name, names=[*map(str, paths)], encoded=lambda index: read_image(paths[index]), left_out=left_out
        )
    reader = open_reader(root, options)
    splits = [reader.read(name) for name in (*reader.splits,) or (None,)]
    at = [(split, index) for split in splits for index in range(len(split))]
    if not at:
        raise InputError(f"{root}: no images found; give a folder of photos")
    return UnlabeledImages(
        name=root.name,
        names=[split.where(index) for split, index in at],
        encoded=lambda index: at[index][0].encoded(at[index][1]),
        left_out=LeftOut.joined([reader.left_out, *(split.left_out for split in splits)]),
    )


def open_reader(
    root: Path, options: DatasetOptions | None = None, *, known: Collection[str] = (), split: str | None = None
) -> Reader:
    """The reader for `root`: of a table, of tar shards or of class folders.

    `known` are the classes of a model and `split` a split, if there are: they say which folders are classes or splits.

    Raises:
        InputError: if there is no such dataset, a shard is missing, or the layout is unclear.
    """
    options = options or DatasetOptions()
    if is_table(root):
        return TableReader.open(root, options)
    if root.is_dir():
        if options.classes_from is not None:
            return FolderReader.from_classes(root, options.classes_from)
        named = [name for name in (options.train_split, options.val_split, split) if name is not None]
        found = TableReader.find(root, options) or ShardReader.find(root)
        return found or FolderReader.find(root, {normalized(name) for name in known}, named)
    if is_pattern(str(root)):
        return ShardReader.from_pattern(root)
    raise InputError(f"{root}: no such folder; give one with a sub-folder of images for each class")


def _read_train(reader: Reader, root: Path, options: DatasetOptions) -> Split:
    name = None
    if options.train_split is not None:
        name = _named(reader, root, options.train_split)
    elif reader.splits:
        if "train" not in reader.splits:
            found = ", ".join(sorted(reader.splits))
            raise InputError(f"{root}: has {found} but no train split; add {reader.example('train')}")
        name = "train"
    train = dataclasses.replace(reader.read(name), name=name or "train")
    if len(train.classes) < 2:
        found = f"{len(train.classes)} class{'' if len(train.classes) == 1 else 'es'} found"
        raise InputError(f"{reader.place(name)}: {found}, at least 2 are needed; add images as {reader.example(name)}")
    for label, count in zip(train.classes, train.counts(), strict=True):
        if not count:
            raise InputError(
                f"{reader.place(name)}/{label}: no images; add some or remove this class{_left_out(train)}"
            )
    return train


def _validation_split(reader: Reader, root: Path, options: DatasetOptions) -> str | None:
    """The split to validate on; None if images of the training split are to be held out."""
    if options.val_split is not None:
        if options.held_out:
            raise InputError("--val-split: with --fold and --group, training images are held out; omit it or these")
        return _named(reader, root, options.val_split)
    if options.held_out:
        if "val" in reader.splits:
            raise InputError(
                f"{root}: has a val split, so --fold and --group have nothing to hold out; omit them, or move its "
                "images to train"
            )
        return None
    return next((name for name in ("val", "test") if name in reader.splits), None)


def _left_out(split: Split) -> str:
    """The end of a message about missing images: what was found instead."""
    return f" ({split.left_out})" if split.left_out else ""


def _named(reader: Reader, root: Path, split: str) -> str:
    """The split that the user calls `split`."""
    name = split if split in reader.splits else split_of(split)
    if name is None or name not in reader.splits:
        found = ", ".join(sorted(reader.splits)) or "none"
        raise InputError(f"{root}: no split '{split}'; choose one of: {found}")
    return name


def relabeled(split: Split, classes: tuple[str, ...]) -> Split:
    """The split with its labels as indices into `classes`. A class without images may be unknown.

    Raises:
        InputError: for an image of a class that is none of them.
    """
    index = {normalized(label): position for position, label in enumerate(classes)}
    for label, count in enumerate(split.counts()):
        name = split.classes[label]
        if count and name not in index:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            where = split.where(int(np.argmax(split.labels == label)))
            raise InputError(f"{where}: unknown class '{name}'; rename or remove the class (known: {known})")
    renumbered = np.array([index.get(label, -1) for label in split.classes], np.int64)
    return dataclasses.replace(split, classes=classes, labels=renumbered[split.labels])
