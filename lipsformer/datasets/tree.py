"""The images in a folder of class folders, listed by walking it, or at the cost of one stat per folder thereafter."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.images.open import EXTENSIONS

from .listing_cache import load_index, save_index, settled
from .names import Names
from .walk import read_entries, state_of, walk

__all__ = ["ClassTree"]

KIND = f"class folders 1 {' '.join(EXTENSIONS)}"  # other endings make another listing
INDEXED_FROM = 10_000  # images; fewer are listed in no time


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassTree:
    """N images in class folders, sorted as paths sort: image i is of `classes[labels[i]]`.

    `names` are relative to the root. `folders` are all that were walked, the root itself being "", and `states` (F, 4)
    their `state_of`; arrays are int64.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: Names
    folders: Names
    states: NDArray[np.int64]

    @classmethod
    def open(cls, root: Path) -> Self:
        """Lists `root`, from its index if no folder has changed since that was written.

        Raises:
            InputError: if a folder cannot be read.
        """
        arrays = load_index(KIND, root)
        kept = None if arrays is None else cls._from_arrays(arrays)
        if kept is not None and kept._unchanged(root):
            return kept
        started = time.time_ns()
        tree, dangling = cls._scan(root)
        if len(tree.labels) > INDEXED_FROM and not dangling and settled(tree.states[:, 2].tolist(), started):
            save_index(KIND, root, tree._to_arrays())
        return tree

    @classmethod
    def _scan(cls, root: Path) -> tuple[Self, bool]:
        """The tree, and whether a link in it leads nowhere yet."""
        folders, states = [""], [state_of(root)]
        names: list[bytes] = []
        counts = []
        entries = read_entries(root)
        dangling = entries.dangling
        for label in entries.folders:
            found: list[bytes] = []
            for folder in walk(root / label):
                folders.append(f"{label}/{folder.name}")
                states.append(folder.state)
                found += [os.fsencode(f"{label}/{folder.name}{image}") for image in folder.entries.files]
                dangling |= folder.entries.dangling
            names += sorted(found, key=lambda name: name.replace(b"/", b"\0"))  # as paths: "a/1" before "a b/1"
            counts.append(len(found))
        tree = cls(
            classes=entries.folders,
            labels=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            names=Names.of(names),
            folders=Names.of(map(os.fsencode, folders)),
            states=np.array(states, np.int64),
        )
        return tree, dangling

    def _unchanged(self, root: Path) -> bool:
        """Whether no image and no folder has come, gone or changed its name since this was listed."""
        base = os.fsencode(root) + b"/"
        try:
            return all(
                state_of(os.fsdecode(base + self.folders[index])) == tuple(state)
                for index, state in enumerate(self.states.tolist())
            )
        except OSError:
            return False

    def _to_arrays(self) -> dict[str, NDArray[Any]]:
        classes = Names.of(map(os.fsencode, self.classes))
        arrays = {"labels": self.labels, "states": self.states}
        for name, names in (("classes", classes), ("names", self.names), ("folders", self.folders)):
            arrays |= names.to_arrays(name)
        return arrays

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """What `_to_arrays` wrote; None if it does not fit together."""
        try:
            classes, names, folders = (Names.from_arrays(name, arrays) for name in ("classes", "names", "folders"))
            labels, states = arrays["labels"], arrays["states"]
        except (KeyError, ValueError):
            return None
        fits = labels.shape == (len(names),) and states.shape == (len(folders), 4) and len(folders) > 0
        if not fits or labels.dtype != np.int64 or states.dtype != np.int64:
            return None
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            return None
        texts = tuple(classes.text(index) for index in range(len(classes)))
        return cls(classes=texts, labels=labels, names=names, folders=folders, states=states)
