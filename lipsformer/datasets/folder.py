"""Folders of labeled images: one sub-folder per class, in one tree or in the splits train/, val/ and test/."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images.open import EXTENSIONS, MinSizeFn, check_bytes, open_image
from lipsformer.system.errors import InputError

from .left_out import LeftOut
from .listing_cache import load_listing, save_listing, settled
from .packed_names import PackedNames
from .reader import SPLITS, Split
from .walk import path_state, read_folder, walk

__all__ = ["FolderListing", "FolderReader", "FolderSplit"]

KIND = f"class folders 1 {' '.join(EXTENSIONS)}"  # other extensions make another listing
CACHED_FROM = 10_000  # images; fewer are listed in no time


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderReader:
    """Class folders: `splits` maps each split to its folder in `root`. Without any, `root` holds the class folders."""

    root: Path
    splits: dict[str, Path]
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    @classmethod
    def find(cls, root: Path) -> Self:
        """Looks for split folders in `root`. A folder of that name without sub-folders is a class."""
        found: dict[str, Path] = {}
        for folder in read_folder(root).folders:
            name = SPLITS.get(folder.lower())
            if name and name not in found and read_folder(root / folder).folders:
                found[name] = root / folder
        return cls(root=root, splits=found)

    def place(self, split: str | None) -> str:
        """See `Reader`."""
        return str(self._folder(split))

    def example(self, split: str | None) -> str:
        """See `Reader`."""
        return f"{self.root / split if split else self.root}/<class>/*.jpg"

    def read(self, split: str | None) -> FolderSplit:
        """See `Reader`."""
        folder = self._folder(split)
        listing = FolderListing.open(folder)
        return FolderSplit(
            name=split or "all",
            classes=listing.classes,
            labels=listing.labels,
            members=np.arange(len(listing.labels), dtype=np.int64),
            root=self.root,
            prefix=f"{folder.name}/" if split in self.splits else "",
            files=listing.names,
        )

    def _folder(self, split: str | None) -> Path:
        return self.root if split is None else self.splits.get(split, self.root)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderSplit(Split):
    """Image files: `files` are relative to `root`/`prefix`, where `prefix` is "" or ends with "/"."""

    root: Path
    prefix: str
    files: PackedNames

    def image_name(self, index: int) -> str:
        """See `Split`."""
        return self.prefix + self.files.text(int(self.members[index]))

    def where(self, index: int) -> str:
        """See `Split`."""
        return str(self.root / self.image_name(index))

    def encoded(self, index: int) -> bytes:
        """See `Split`."""
        where = self.where(index)
        try:
            check_bytes(os.stat(where).st_size, where)  # noqa: PTH116 - called for every image
            with open(where, "rb") as file:  # noqa: PTH123
                return file.read()
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror}); check its permissions") from None

    def open(self, index: int, *, smallest: MinSizeFn | None = None) -> Image.Image:
        """See `Split`."""
        return open_image(self.root / self.image_name(index), smallest=smallest)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderListing:
    """N images in class folders, sorted as paths sort: image i is of `classes[labels[i]]`.

    `names` are relative to the listed folder. `folders` are all folders that were walked, the listed one being "", and
    `states` (F, 4) their `path_state`. Arrays are int64.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: PackedNames
    folders: PackedNames
    states: NDArray[np.int64]

    @classmethod
    def open(cls, root: Path) -> Self:
        """Walks `root`, or takes the cached listing if no folder has changed: that costs one stat per folder.

        Raises:
            InputError: if a folder cannot be read.
        """
        arrays = load_listing(KIND, root)
        cached = None if arrays is None else cls._from_arrays(arrays)
        if cached is not None and cached._unchanged(root):
            return cached
        started = time.time_ns()
        listing, dangling = cls._scan(root)
        if len(listing.labels) > CACHED_FROM and not dangling and settled(listing.states[:, 2].tolist(), started):
            save_listing(KIND, root, listing._to_arrays())
        return listing

    @classmethod
    def _scan(cls, root: Path) -> tuple[Self, bool]:
        """Lists `root`, and whether it holds a broken link."""
        top = read_folder(root)
        folders, states, dangling = [""], [top.state], top.dangling
        names: list[bytes] = []
        counts = []
        for label in top.folders:
            found: list[bytes] = []
            for folder in walk(root / label):
                folders.append(f"{label}/{folder.name}")
                states.append(folder.state)
                found += [os.fsencode(f"{label}/{folder.name}{image}") for image in folder.files]
                dangling |= folder.dangling
            names += sorted(found, key=lambda name: name.replace(b"/", b"\0"))  # as paths: "a/1" before "a b/1"
            counts.append(len(found))
        listing = cls(
            classes=top.folders,
            labels=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            names=PackedNames.of(names),
            folders=PackedNames.of(map(os.fsencode, folders)),
            states=np.array(states, np.int64),
        )
        return listing, dangling

    def _unchanged(self, root: Path) -> bool:
        """Whether no image or folder was added, removed or renamed since this listing was made."""
        base = os.fsencode(root) + b"/"
        try:
            return all(
                path_state(os.fsdecode(base + self.folders[index])) == tuple(state)
                for index, state in enumerate(self.states.tolist())
            )
        except OSError:
            return False

    def _to_arrays(self) -> dict[str, NDArray[Any]]:
        classes = PackedNames.of(map(os.fsencode, self.classes))
        arrays = {"labels": self.labels, "states": self.states}
        for name, names in (("classes", classes), ("names", self.names), ("folders", self.folders)):
            arrays |= names.to_arrays(name)
        return arrays

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """Reads what `_to_arrays` wrote; None if it is inconsistent."""
        try:
            classes, names, folders = (
                PackedNames.from_arrays(name, arrays) for name in ("classes", "names", "folders")
            )
            labels, states = arrays["labels"], arrays["states"]
        except (KeyError, ValueError):
            return None
        fits = labels.shape == (len(names),) and states.shape == (len(folders), 4) and len(folders) > 0
        if not fits or labels.dtype != np.int64 or states.dtype != np.int64:
            return None
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            return None
        return cls(classes=classes.texts(), labels=labels, names=names, folders=folders, states=states)
