"""Folders of labelled images: one sub-folder per class, in one tree or in the splits train/, val/ and test/."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .images import EXTENSIONS

__all__ = ["ImageFolder", "Split", "find_images", "open_dataset", "open_labelled"]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
HELD_OUT_PERCENT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Images and their labels: `labels[i]` is the index of the class of `paths[i]`."""

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A dataset to train on. `validation` is val/, or else test/, or else a tenth of train, chosen by file name."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split


def open_dataset(root: Path) -> ImageFolder:
    """Reads the file names of a dataset; classes come from the training split alone.

    Raises:
        InputError: if there is no such folder, a class is empty or fewer than two remain, or another split has a class
            that training does not know.
    """
    splits = _split_folders(root)
    if splits and "train" not in splits:
        raise InputError(
            f"{root}: has {', '.join(sorted(splits))} but no train folder; add {root / 'train'}/<class>/*.jpg"
        )
    train_root = splits.get("train", root)
    classes = _class_names(train_root)
    if len(classes) < 2:
        raise InputError(
            f"{train_root}: {len(classes)} class folders, at least 2 are needed; put images into {train_root}/<class>/"
        )
    train = _read_split("train", train_root, classes)
    present = set(train.labels)
    for index, name in enumerate(classes):
        if index not in present:
            raise InputError(f"{train_root / name}: holds no images; add some or remove the folder")
    for name in ("val", "test"):
        if name in splits:
            validation = _read_split(name, splits[name], classes)
            if not len(validation):
                raise InputError(f"{splits[name]}: holds no images; add some or remove the folder")
            return ImageFolder(root=root, classes=classes, train=train, validation=validation)
    kept, held_out = _hold_out(train, root)
    return ImageFolder(root=root, classes=classes, train=kept, validation=held_out)


def open_labelled(root: Path, classes: Sequence[str], split: str | None = None) -> Split:
    """The labelled images to evaluate a model of `classes` on.

    `split` names a split folder; by default test/, else val/, else train/, else the class folders directly in `root`.

    Raises:
        InputError: if the folder, the split or the images are missing, or a class is not the model's.
    """
    splits = _split_folders(root)
    if split is not None:
        name = SPLITS.get(split, split)
        if name not in splits:
            raise InputError(f"{root}: has no split '{split}'; it has {', '.join(sorted(splits)) or 'none'}")
    else:
        name = next((name for name in ("test", "val", "train") if name in splits), "all")
    found = _read_split(name, splits.get(name, root), tuple(classes))
    if not len(found):
        raise InputError(f"{splits.get(name, root)}: holds no images; put them into <class>/ folders there")
    return found


def find_images(root: Path) -> list[Path]:
    """All image files below `root`, by name endings, sorted; hidden files and folders are left out.

    Links are followed; a folder that several links lead to is read once, so a loop ends.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one that holds images")
    found = []
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, n) for n in files if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one with a sub-folder of images for each class")
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        name = SPLITS.get(entry.name.lower())
        if name and entry.is_dir() and name not in found and _class_names(entry):
            found[name] = entry
    # Class folders that merely bear the name of a split hold images, not folders: `_class_names` tells them apart.
    return found


def _class_names(root: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".")))


def _read_split(name: str, root: Path, classes: tuple[str, ...]) -> Split:
    index = {label: position for position, label in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for label in _class_names(root):
        images = find_images(root / label)
        if label not in index:
            if not images:
                continue
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise InputError(f"{root / label}: class '{label}' is unknown; rename or remove it (known: {known})")
        paths += images
        labels += [index[label]] * len(images)
    return Split(name=name, paths=tuple(paths), labels=tuple(labels))


def _hold_out(train: Split, root: Path) -> tuple[Split, Split]:
    """Takes a tenth of each class (at least one image of those that have two), by a hash of the file's name.

    The choice does not depend on the order, the machine or the seed, so it is the same for every run.
    """

    def rank(position: int) -> bytes:
        return hashlib.sha256(os.fsencode(train.paths[position].relative_to(root).as_posix())).digest()

    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(train.labels):
        by_class.setdefault(label, []).append(position)
    chosen: set[int] = set()
    for members in by_class.values():
        members.sort(key=rank)
        count = max(1, round(len(members) * HELD_OUT_PERCENT / 100)) if len(members) > 1 else 0
        chosen.update(members[:count])
    if not chosen:
        raise InputError(f"{root}: one image per class leaves none to validate on; add images")

    def part(name: str, keep: bool) -> Split:
        positions = [i for i in range(len(train)) if (i in chosen) == keep]
        return Split(
            name=name,
            paths=tuple(train.paths[i] for i in positions),
            labels=tuple(train.labels[i] for i in positions),
        )

    return part("train", keep=False), part("held-out tenth of train", keep=True)
