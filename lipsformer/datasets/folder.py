"""Folders of labelled images: one sub-folder per class, in one tree or in the splits train/, val/ and test/."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lipsformer.errors import InputError
from lipsformer.images import EXTENSIONS, Smallest, open_image

from .layout import SPLITS, Listing
from .names import Names

__all__ = ["FolderLayout", "FolderSource", "find_images"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource:
    """Image files: `names` below `root`/`prefix`; `prefix` is empty or ends with "/"."""

    root: Path
    prefix: str
    names: Names

    def name(self, position: int) -> str:
        """See `Source`."""
        return self.prefix + self.names.text(position)

    def where(self, position: int) -> str:
        """See `Source`."""
        return str(self.root / self.name(position))

    def open(self, position: int, smallest: Smallest | None) -> Image.Image:
        """See `Source`."""
        return open_image(self.root / self.name(position), smallest=smallest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The split folders of a dataset, by the split's name; none if the class folders lie directly in `root`."""

    root: Path
    splits: dict[str, Path]

    unit = "folder"
    classes = "class folders"

    @classmethod
    def find(cls, root: Path) -> FolderLayout:
        """Looks for split folders in `root`. One that holds no folders is a class that merely bears such a name."""
        found: dict[str, Path] = {}
        for entry in sorted(root.iterdir()):
            name = SPLITS.get(entry.name.lower())
            if name and entry.is_dir() and name not in found and _class_names(entry):
                found[name] = entry
        return cls(root=root, splits=found)

    def place(self, split: str | None) -> str:
        """See `Layout`."""
        return str(self._folder(split))

    def example(self, split: str | None) -> str:
        """See `Layout`."""
        return f"{self.root / split if split else self.root}/<class>/*.jpg"

    def read(self, split: str | None) -> Listing:
        """See `Layout`."""
        folder = self._folder(split)
        prefix = "" if split not in self.splits else f"{folder.name}/"
        classes = _class_names(folder)
        names: list[bytes] = []
        counts = []
        for label in classes:
            before = len(names)
            names += [os.fsencode(f"{label}/") + name for name in _image_names(folder / label)]
            counts.append(len(names) - before)
        return Listing(
            classes=classes,
            labels=np.repeat(np.arange(len(classes)), counts).astype(np.int64),
            places=tuple(str(folder / label) for label in classes),
            source=FolderSource(root=self.root, prefix=prefix, names=Names.of(names)),
        )

    def _folder(self, split: str | None) -> Path:
        return self.root if split is None else self.splits.get(split, self.root)


def find_images(root: Path) -> list[Path]:
    """All image files below `root`, by name endings, sorted; hidden files and folders are left out.

    Links are followed; a folder that several links lead to is read once, so a loop ends.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one that holds images")
    return [root / os.fsdecode(name) for name in _image_names(root)]


def _image_names(root: Path) -> list[bytes]:
    """The names of all images below `root`, relative to it and with "/", sorted folder by folder."""
    found = []
    for folder, files in _walk(root):
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        found += [os.fsencode(prefix + name) for name in files]
    return sorted(found, key=lambda name: name.replace(b"/", b"\0"))  # as paths sort: "a/1" comes before "a b/1"


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `root` down, with the images that lie directly in it."""
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, [name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


def _class_names(root: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".")))
