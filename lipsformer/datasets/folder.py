"""Folders of labeled images: one sub-folder per class, in one tree or in the splits train/, val/ and test/."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from PIL import Image

from lipsformer.images.open import MinSizeFn, open_image

from .layout import SPLITS, Listing
from .names import Names
from .tree import ClassTree
from .walk import read_entries

__all__ = ["FolderLayout", "FolderSource"]


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

    def open(self, position: int, smallest: MinSizeFn | None) -> Image.Image:
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
        for folder in read_entries(root).folders:
            name = SPLITS.get(folder.lower())
            if name and name not in found and read_entries(root / folder).folders:
                found[name] = root / folder
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
        tree = ClassTree.open(folder)
        return Listing(
            classes=tree.classes,
            labels=tree.labels,
            places=tuple(str(folder / label) for label in tree.classes),
            source=FolderSource(root=self.root, prefix=prefix, names=tree.names),
        )

    def _folder(self, split: str | None) -> Path:
        return self.root if split is None else self.splits.get(split, self.root)
