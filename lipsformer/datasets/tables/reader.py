"""Datasets in tables: each row names an image, or has its bytes, with its label and perhaps its split."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from lipsformer.bundle.class_names import read_classes
from lipsformer.datasets.folders.folder import FolderSplit
from lipsformer.datasets.labels import classes_of, find_class_file
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.options import DatasetOptions
from lipsformer.datasets.reader import Split
from lipsformer.datasets.walk import walk
from lipsformer.system.console import say
from lipsformer.system.errors import InputError

from .columns import Columns, find_columns
from .listing import TableListing, list_rows
from .packed_images import PackedImages, PackedSplit
from .rows import binary_columns, column_names, label_names
from .sources import METADATA, Source, find_sources, is_table, sources_of

__all__ = ["TableReader", "is_table"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableReader:
    """The `tables` of a dataset, all with the same `columns`, and the `listing` of their rows.

    `packed` are the images of Parquet files with bytes, by table. `names` are class names for labels in numbers, from
    `names_from`.
    """

    root: Path
    tables: tuple[Path, ...]
    columns: Columns
    listing: TableListing
    packed: tuple[PackedImages, ...]
    names: tuple[str, ...]
    names_from: Path
    left_out: LeftOut

    @classmethod
    def open(cls, data: Path, options: DatasetOptions) -> Self:
        """Reads the table `data`, or several with braces.

        Raises:
            InputError: if one cannot be read, lacks a column, names no images, or one image twice.
        """
        return cls._read(*sources_of(data), options)

    @classmethod
    def find(cls, root: Path, options: DatasetOptions) -> Self | None:
        """Reads the tables of a folder; None if it has none that describe it.

        Raises:
            InputError: as `open`.
        """
        sources = find_sources(root, options.columns)
        return cls._read(root, sources, options) if sources else None

    @property
    def splits(self) -> Collection[str]:
        """See `Reader`."""
        return [split for split in self.listing.splits if split]

    def place(self, split: str | None) -> str:
        """See `Reader`."""
        return f"{self.tables[0]} (split {split})" if split else str(self.tables[0])

    def example(self, split: str | None) -> str:
        """See `Reader`."""
        wanted = f" whose '{self.columns.split or 'split'}' is {split}" if split else ""
        return f"rows of {self.tables[0]}{wanted}"

    def read(self, split: str | None) -> Split:
        """See `Reader`."""
        listing = self.listing
        members = np.arange(len(listing.labels), dtype=np.int64)
        if split is not None:
            members = np.flatnonzero(listing.split == listing.splits.index(split))
        texts = [listing.texts[number] for number in np.unique(listing.labels[members]).tolist()]
        classes = classes_of(
            texts,
            file=find_class_file(self.tables[0].parent),
            names=self.names,
            where=self.names_from,
        )
        order = [*dict.fromkeys(classes.values())]
        numbers = {name: number for number, name in enumerate(order)}
        renumbered = np.array([numbers.get(classes.get(text, ""), -1) for text in listing.texts], np.int64)
        labels = renumbered[listing.labels[members]]
        by_class = np.argsort(labels, kind="stable")  # the order of a folder's listing: classes, then paths
        common: dict[str, Any] = {
            "name": split or "all",
            "classes": tuple(order),
            "labels": labels[by_class],
            "root": self.root,
        }
        common |= {"members": members[by_class], "files": listing.names, "grouping": listing.grouping}
        if not self.packed:
            return FolderSplit(prefix="", **common)
        return PackedSplit(
            tables=self.tables,
            contents=tuple(images.file for images in self.packed),
            table=listing.table,
            offsets=np.concatenate([images.offsets for images in self.packed])[listing.row],
            sizes=np.concatenate([images.sizes for images in self.packed])[listing.row],
            **common,
        )

    @classmethod
    def _read(cls, root: Path, sources: list[Source], options: DatasetOptions) -> Self:
        first = root / sources[0].name
        binary = binary_columns(first)
        columns = find_columns(first, column_names(first), options.columns, options.group, binary)
        for source in sources[1:]:
            needed = [
                columns.path,
                columns.label,
                columns.content,
                columns.group,
                None if source.split else columns.split,
            ]
            missing = [name for name in needed if name not in (None, *column_names(root / source.name))]
            if missing:
                raise InputError(f"{root / source.name}: has no column '{missing[0]}', unlike {first}; add it")
        say(f"{first}: {columns}")
        tables = [root / source.name for source in sources]
        packed = tuple(PackedImages.open(table, columns.content) for table in tables) if columns.content else ()
        images, left_out = root, LeftOut()
        if options.images is not None:
            images, sources = options.images, [dataclasses.replace(source, folder="") for source in sources]
        listing = list_rows(tables, sources, columns, images, packed, left_out)
        if first.name in METADATA and not packed:
            _count_unnamed(images, sources, listing, left_out)
        return cls(
            root=images,
            tables=tuple(tables),
            columns=columns,
            listing=listing,
            packed=packed,
            names=read_classes(options.classes) if options.classes is not None else label_names(first, columns.label),
            names_from=options.classes or first,
            left_out=left_out,
        )


def _count_unnamed(images: Path, sources: Sequence[Source], listing: TableListing, left_out: LeftOut) -> None:
    """Counts the images next to the tables that no row names."""
    named = {listing.names.text(index) for index in range(len(listing.names))}
    for source in sources:
        for folder in walk(images / source.folder):
            unnamed = [name for file in folder.files if (name := f"{source.folder}{folder.name}{file}") not in named]
            if unnamed:
                left_out.add("no_label", unnamed[0], len(unnamed))
