"""The layout of a folder of class folders: which of its folders are splits, and which layouts are refused.

A layout is read as it is meant if that is clear. Otherwise it is refused with what it looks like, because a wrong guess
trains a classifier of "Training" against "Testing", or on the test images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from lipsformer.bundle.class_names import normalized
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.split_names import looks_like_split, split_of, split_within
from lipsformer.datasets.walk import Folder, read_folder, walk
from lipsformer.system.errors import InputError

__all__ = ["Layout", "find_layout"]

AS_CLASSES = "if these are the classes, pass --classes-from ."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """`splits` maps each split to its folder, relative to `root`. Without any, `root` holds the class folders."""

    root: Path
    splits: Mapping[str, str]
    left_out: LeftOut


def find_layout(root: Path, known: Collection[str] = (), named: Collection[str] = ()) -> Layout:
    """Finds the split folders of `root`. `known` are classes of a model; `named` are folders to take as splits.

    Raises:
        InputError: if it is unclear which folders are splits and which are classes.
    """
    top = read_folder(root)
    unknown = [name for name in top.folders if normalized(name) not in known]
    splits = {name: name for name in named if name in top.folders and not split_of(name)}
    splits |= _exact_splits(root, top, named) or ({} if splits else _similar_splits(root, unknown))
    if splits:
        splits = {split: _unwrapped(root, folder) for split, folder in splits.items()}
        return Layout(root=root, splits=splits, left_out=_beside(root, top, splits, refuse=not named))
    if len(unknown) == len(top.folders) == 1 and not top.files:
        inside = read_folder(root / unknown[0]).folders
        if len(inside) > 1 or any(map(split_of, inside)):
            return find_layout(root / unknown[0], known, named)  # a folder around the dataset
    found = {looks_like_split(name) for name in unknown}
    if len(unknown) == len(top.folders) and len(found) > 1 and "train" in found and None not in found:
        raise InputError(
            f"{root}: its folders {_listed(unknown)} look like splits, not like classes; put class folders into "
            f"train/, val/ and test/, or {AS_CLASSES}"
        )
    return Layout(root=root, splits={}, left_out=LeftOut())


def _exact_splits(root: Path, top: Folder, named: Collection[str]) -> dict[str, str]:
    """Folders named as splits are. One without sub-folders is a class."""
    found: dict[str, str] = {}
    for folder in top.folders:
        split = split_of(folder)
        if split is None or not read_folder(root / folder).folders:
            continue
        if split in found and folder not in named and found[split] not in named:
            raise InputError(
                f"{root}: both {found[split]}/ and {folder}/ look like the split {split}; merge them, rename one, or "
                f"{AS_CLASSES}"
            )
        if split not in found or folder in named:
            found[split] = folder
    return found


def _similar_splits(root: Path, folders: Collection[str]) -> dict[str, str]:
    """Split folders such as `fruits_train/` and `fruits_test/`, if they share the rest of the name and a class."""
    found: dict[str, str] = {}
    rests, classes = set(), []
    for folder in folders:
        within = split_within(folder)
        if within is None or not (inside := read_folder(root, _unwrapped(root, folder)).folders):
            continue
        if within[0] in found:
            return {}
        found[within[0]] = folder
        rests.add(within[1])
        classes.append({normalized(name) for name in inside})
    if "train" not in found or len(found) == 1:
        return {}
    if len(rests) > 1 or not set.intersection(*classes):
        raise InputError(
            f"{root}: {_listed(found.values())} look like splits; rename them to {', '.join(found)}, or {AS_CLASSES}"
        )
    return found


def _unwrapped(root: Path, folder: str) -> str:
    """`folder`, or the single folder in it if that is named like a split too: `seg_train/seg_train/`."""
    inside = read_folder(root / folder)
    if len(inside.folders) == 1 and not inside.files:
        within = split_within(inside.folders[0])
        if within is not None and within[0] == (split_within(folder) or ("", ""))[0]:
            inner = f"{folder}/{inside.folders[0]}"
            return inner if read_folder(root / inner).folders else folder
    return folder


def _beside(root: Path, top: Folder, splits: Mapping[str, str], *, refuse: bool) -> LeftOut:
    """What is next to the split folders. Another folder that seems to be a split is refused, if `refuse`."""
    left_out = LeftOut()
    left_out.update(top.left_out)
    if top.files:
        left_out.add("stray", top.files[0], len(top.files))
    classes = {name for folder in splits.values() for name in read_folder(root / folder).folders}
    used = {folder.partition("/")[0] for folder in splits.values()}
    for folder in top.folders:
        if folder in used:
            continue
        inside = read_folder(root / folder).folders
        if refuse and inside and (looks_like_split(folder) or not classes.isdisjoint(inside)):
            raise InputError(
                f"{root / folder}: it looks like another split next to {_listed(used)}; rename it to train, val or "
                f"test, move it away, name the splits (--train-split, --val-split or --split), or {AS_CLASSES}"
            )
        for found in walk(root / folder):
            left_out.update(found.left_out, f"{folder}/")
            if found.files:
                left_out.add("stray", f"{folder}/{found.name}{found.files[0]}", len(found.files))
    return left_out


def _listed(folders: Collection[str]) -> str:
    names = [f"{folder}/" for folder in sorted(folders)]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
