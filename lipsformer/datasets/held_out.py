"""Images held out of the training split to validate on: a tenth, or one of k folds, in groups if wanted.

The choice is made by hashes of names. It does not depend on the order, the machine or the seed, so it is the same for
every run.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.errors import InputError

from .options import DatasetOptions
from .reader import Split

__all__ = ["groups_of", "hold_out"]

HELD_OUT_PERCENT = 10


def hold_out(train: Split, options: DatasetOptions, root: object) -> tuple[Split, Split]:
    """Splits `train` into what stays and what is held out. `root` is the dataset, for messages.

    Raises:
        InputError: if nothing can be held out, a class would lose all its images, or the groups are unknown.
    """
    fold, group = options.fold_numbers(), options.group
    if fold is None and group is None:
        chosen, name = _tenth(train), "held-out tenth of train"
    else:
        groups = list(train.names()) if group is None else groups_of(train, group)
        folds = _folds(groups, train.labels, fold[1] if fold else 100 // HELD_OUT_PERCENT, pin=fold is None)
        chosen = folds == (fold[0] if fold else _nearest(folds))
        part = "held-out tenth" if fold is None else f"fold {options.fold}"
        name = f"{part} of train" + ("" if group is None else ", by group")
        _check(train, chosen, root, name)
    if not chosen.any():
        what = "image" if group is None else "group"
        raise InputError(f"{root}: one {what} per class leaves none to validate on; add images")
    held_out = dataclasses.replace(train.select(np.flatnonzero(chosen)), name=name)
    return train.select(np.flatnonzero(~chosen)), held_out


def _tenth(train: Split) -> NDArray[np.bool_]:
    """A tenth of each class, and at least one image of those that have two."""
    ranks = [_rank(name) for name in train.names()]
    chosen = np.zeros(len(train), bool)
    by_class = np.argsort(train.labels, kind="stable")
    for positions in np.split(by_class, np.flatnonzero(np.diff(train.labels[by_class])) + 1):
        members = sorted(positions.tolist(), key=ranks.__getitem__)
        count = max(1, round(len(members) * HELD_OUT_PERCENT / 100)) if len(members) > 1 else 0
        chosen[members[:count]] = True
    return chosen


def _folds(groups: Sequence[str], labels: NDArray[np.int64], count: int, *, pin: bool) -> NDArray[np.int64]:
    """The fold of each image, from 0: groups stay whole, and each fold gets about the same share of each class.

    Large groups come first. Each goes to the fold that has the least of its classes so far. With `pin`, a group that
    has all images of a class is in no fold (-1).
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    totals = np.bincount(labels)
    filled = [collections.Counter[int]() for _ in range(count)]  # images of each class, by fold
    sizes = [0] * count
    folds = np.full(len(labels), -1, np.int64)
    for group in sorted(members, key=lambda group: (-len(members[group]), _rank(group))):
        classes = collections.Counter(labels[members[group]].tolist())
        if pin and any(totals[label] == number for label, number in classes.items()):
            continue
        shares = [(label, number / int(totals[label])) for label, number in classes.items()]
        fold = min(
            range(count),
            key=lambda fold: (math.fsum(share * filled[fold][label] for label, share in shares), sizes[fold], fold),
        )
        filled[fold].update(classes)
        sizes[fold] += len(members[group])
        folds[members[group]] = fold
    return folds


def _nearest(folds: NDArray[np.int64]) -> int:
    """The fold whose size is nearest to a tenth: if groups are large, sizes differ."""
    sizes = np.bincount(folds[folds >= 0], minlength=1)
    return int(np.argmin(np.where(sizes > 0, abs(sizes * 100 - len(folds) * HELD_OUT_PERCENT), np.iinfo(np.int64).max)))


def _check(train: Split, chosen: NDArray[np.bool_], root: object, name: str) -> None:
    left = np.bincount(train.labels[~chosen], minlength=len(train.classes))
    lost = np.flatnonzero((left == 0) & (train.counts() > 0))
    if len(lost):
        raise InputError(
            f"{root}: {name} has all images of the class '{train.classes[lost[0]]}', so none is left to train on; add "
            "images (or groups) of it, or remove it"
        )


def groups_of(train: Split, group: str) -> list[str]:
    """The group of each image: of the table's column, or by the regular expression `group` in the images' names.

    Raises:
        InputError: if `group` is neither, or the expression does not match a name.
    """
    column = train.groups(group)
    if column is not None:
        return column
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise InputError(f"--group {group}: neither a column nor a regular expression ({error})") from None
    if not pattern.groups:
        raise InputError(
            f"--group {group}: not a column of the dataset, and a regular expression needs a group in parentheses, as "
            r"in '(patient\d+)'"
        )
    found = []
    for index, name in enumerate(train.names()):
        match = pattern.search(name)
        if match is None or match.group(1) is None:
            raise InputError(f"--group {group}: does not match the name {name!r} of {train.where(index)}")
        found.append(match.group(1))
    return found


def _rank(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()
