"""Folders of labeled images: one sub-folder per class, in one tree or in the splits train/, val/ and test/."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.bundle.class_names import normalized
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.listing_cache import load_listing, save_listing, settled
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.datasets.reader import Split
from lipsformer.datasets.split_names import split_of
from lipsformer.datasets.walk import path_state, read_folder, walk
from lipsformer.images.open import EXTENSIONS, read_image
from lipsformer.system.errors import InputError

from .folder_layout import find_layout

__all__ = ["FolderListing", "FolderReader", "FolderSplit"]

KIND = f"class folders 2 {' '.join(EXTENSIONS)}"  # other extensions make another listing
CACHED_FROM = 10_000  # images; fewer are listed in no time


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderReader:
    """Class folders: `splits` maps each split to its folder in `root`. Without any, `root`/`base` has the classes.

    `checked` means that the user has said which folders are classes.
    """

    root: Path
    splits: Mapping[str, str]
    base: str = ""
    checked: bool = False
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    @classmethod
    def find(cls, root: Path, known: Collection[str] = (), named: Collection[str] = ()) -> Self:
        """Looks for split folders in `root`, see `find_layout`.

        Raises:
            InputError: if it is unclear which folders are splits and which are classes.
        """
        layout = find_layout(root, known, named)
        return cls(root=layout.root, splits=layout.splits, left_out=layout.left_out)

    @classmethod
    def from_classes(cls, root: Path, base: str) -> Self:
        """All folders in `root`/`base` as classes, whatever their names.

        Raises:
            InputError: if there is no such folder.
        """
        folder = PurePosixPath(base)
        if folder.is_absolute() or ".." in folder.parts or not (root / folder).is_dir():
            raise InputError(f"--classes-from {base}: no such folder in {root}; give one, or . for {root} itself")
        return cls(root=root, splits={}, base="" if folder == PurePosixPath() else str(folder), checked=True)

    def place(self, split: str | None) -> str:
        """See `Reader`."""
        return str(self.root / self._folder(split))

    def example(self, split: str | None) -> str:
        """See `Reader`."""
        return f"{self.root / self.splits.get(split or '', split or self.base)}/<class>/*.jpg"

    def read(self, split: str | None) -> FolderSplit:
        """See `Reader`."""
        folder = self._folder(split)
        prefix = f"{folder}/" if folder else ""
        listing = FolderListing.open(self.root / folder)
        if split is None and not self.checked:
            _check_classes(self.root, listing)
        if listing.left_out.count("stray") > len(listing.labels) > 0:
            raise InputError(
                f"{self.root / folder}: {listing.left_out.count('stray'):,} images are outside of its class folders, "
                f"which have {len(listing.labels):,}; move them into class folders, or away"
            )
        left_out = LeftOut()
        left_out.update(listing.left_out, prefix)
        names = _class_names(self.root / folder, listing.classes)
        classes = tuple(sorted(names))
        numbers = {name: number for number, name in enumerate(classes)}
        return FolderSplit(
            name=split or "all",
            classes=classes,
            labels=np.array([numbers[name] for name in names], np.int64)[listing.labels],
            members=np.arange(len(listing.labels), dtype=np.int64),
            left_out=left_out,
            root=self.root,
            prefix=prefix,
            files=listing.names,
        )

    def _folder(self, split: str | None) -> str:
        return self.base if split is None else self.splits[split]


def _class_names(root: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    """The class of each folder: its name in Unicode's form NFC.

    Raises:
        InputError: if a name is not UTF-8, or two are the same class.
    """
    found: dict[str, str] = {}
    for folder in folders:
        try:
            folder.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{root}: the name of the class folder {os.fsencode(folder)!r} is not UTF-8; rename it, for example by "
                f"`convmv -f latin1 -t utf8 --notest {root}/*`"
            ) from None
        name = normalized(folder)
        if name in found:
            raise InputError(
                f"{root}: two class folders are named '{name}', in different Unicode forms ({found[name]!a} and "
                f"{folder!a}); merge them"
            )
        found[name] = folder
    return tuple(found)


def _check_classes(root: Path, listing: FolderListing) -> None:
    """Checks that the class folders have no split folders in them.

    Raises:
        InputError: if several splits occur there.
    """
    below: dict[str, str] = {}
    for index in range(1, len(listing.folders)):
        parts = listing.folders.text(index).split("/")
        if parts[1] and (split := split_of(parts[1])):
            below.setdefault(split, "/".join(parts[:2]))
    if len(below) > 1 and "train" in below:
        raise InputError(
            f"{root}: the class folders have splits in them ({', '.join(below.values())}); move the splits up, as in "
            f"{root}/train/{below['train'].partition('/')[0]}, or pass --classes-from . to use all images as one set"
        )


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
        return read_image(Path(self.where(index)))


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
    left_out: LeftOut

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
        folders, states, dangling, left_out = [""], [top.state], top.dangling, LeftOut()
        left_out.update(top.left_out)
        if top.files:
            left_out.add("stray", top.files[0], len(top.files))
        names: list[bytes] = []
        counts = []
        for label in top.folders:
            found: list[bytes] = []
            for folder in walk(root / label):
                folders.append(f"{label}/{folder.name}")
                states.append(folder.state)
                found += [os.fsencode(f"{label}/{folder.name}{image}") for image in folder.files]
                dangling |= folder.dangling
                left_out.update(folder.left_out, f"{label}/")
            names += sorted(found, key=lambda name: name.replace(b"/", b"\0"))  # as paths: "a/1" before "a b/1"
            counts.append(len(found))
        listing = cls(
            classes=top.folders,
            labels=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            names=PackedNames.of(names),
            folders=PackedNames.of(map(os.fsencode, folders)),
            states=np.array(states, np.int64),
            left_out=left_out,
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
        arrays: dict[str, NDArray[Any]] = {
            "labels": self.labels,
            "states": self.states,
            "left_out": self.left_out.to_array(),
        }
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
            left_out = LeftOut.from_array(arrays["left_out"])
        except (KeyError, ValueError):
            return None
        fits = labels.shape == (len(names),) and states.shape == (len(folders), 4) and len(folders) > 0
        if not fits or labels.dtype != np.int64 or states.dtype != np.int64:
            return None
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            return None
        return cls(
            classes=classes.texts(), labels=labels, names=names, folders=folders, states=states, left_out=left_out
        )
