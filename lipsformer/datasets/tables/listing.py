"""The listing of tables: the image, label, split and group of each row, sorted as a folder's images are."""

from __future__ import annotations

import array
import dataclasses
import os
import posixpath
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.labels import label_text
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.datasets.reader import Grouping
from lipsformer.datasets.split_names import split_of
from lipsformer.system.errors import InputError

from .columns import Columns
from .packed_images import PackedImages
from .rows import read_rows
from .sources import Source

__all__ = ["TableListing", "list_rows"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableListing:
    """N images, sorted as paths sort: image i has the label `texts[labels[i]]` and is in `splits[split[i]]`.

    `row[i]` is its row, counted over all tables, and `table[i]` its table. A split of "" means that there are none.
    """

    names: PackedNames
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: tuple[str, ...]
    split: NDArray[np.int32]
    row: NDArray[np.int64]
    table: NDArray[np.int32]
    grouping: Grouping | None


class Codes:
    """Small numbers for texts that repeat: one integer for each row, and the distinct texts."""

    def __init__(self, convert: Callable[[str], str | None]) -> None:
        self.rows = array.array("i")
        self._convert = convert
        self._converted: dict[str, str | None] = {}
        self._numbers: dict[str, int] = {}

    def read(self, text: str | None) -> str | None:
        """The converted text; None if it is empty."""
        if text is None:
            return None
        if text not in self._converted:
            self._converted[text] = self._convert(text)
        return self._converted[text]

    def append(self, text: str) -> None:
        """Adds the text of the next row."""
        self.rows.append(self._numbers.setdefault(text, len(self._numbers)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The distinct texts, by number."""
        return tuple(self._numbers)

    def numbers(self, order: NDArray[np.int64]) -> NDArray[np.int32]:
        """The number of each row, in this order."""
        return np.array(self.rows, np.int32)[order]


class Rows:
    """The rows that are used so far."""

    def __init__(self, tables: Sequence[Path], columns: Columns, images: Path, left_out: LeftOut) -> None:
        self.tables, self.columns, self.images, self.left_out = tables, columns, images, left_out
        self._root = os.path.abspath(images) + "/"  # noqa: PTH100 - without following links
        self.names: list[bytes] = []
        self.rows, self.table = array.array("q"), array.array("i")
        self.labels = Codes(label_text)
        self.splits = Codes(lambda text: split_of(text) or text)
        self.groups = Codes(lambda text: text.encode("utf-8", "backslashreplace").decode())

    def add(self, number: int, source: Source, packed: PackedImages | None, first: int) -> int:
        """Adds the rows of table `number`, of which the first has the number `first`; returns that of the next one."""
        columns, table, row = self.columns, self.tables[number], first
        wanted = (columns.path, columns.label, columns.split if source.split is None else None, columns.group)
        for at, (place, (path, label, split, group)) in enumerate(read_rows(table, wanted)):
            row = first + at + 1
            text, where = self.labels.read(label), f"{table.name}: {place}"
            name = self._file(path, source, table, place) if packed is None else _name(path, packed, at, table)
            if text is None:
                self.left_out.add("no_label", where)
            elif name is None:
                self.left_out.add("missing", where if path is None else f"{where}: {path}")
            else:
                self.names.append(name)
                self.rows.append(first + at)
                self.table.append(number)
                self.labels.append(text)
                self.splits.append(source.split or self.splits.read(split) or "")
                self.groups.append(
                    self.groups.read(group) or os.fsdecode(name)
                )  # without a group, an image is one by itself
        return row

    def _file(self, path: str | None, source: Source, table: Path, place: str) -> bytes | None:
        """The file that a row names, relative to `images`; None if there is no such file."""
        if path is None:
            return None
        if "://" in path:
            raise InputError(f"{table}: {place} names the URL {path}; download the images, and give paths of files")
        path = path if "/" in path else path.replace("\\", "/")
        name = posixpath.normpath(source.folder + path if not path.startswith("/") else path)
        name = name.removeprefix(self._root)
        for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
            if os.path.isfile(os.path.join(self.images, form)):  # noqa: PTH113, PTH118 - called 100,000 times
                return os.fsencode(form)
        return None


def list_rows(
    tables: Sequence[Path],
    sources: Sequence[Source],
    columns: Columns,
    images: Path,
    packed: Sequence[PackedImages],
    left_out: LeftOut,
) -> TableListing:
    """Lists the rows of `tables`; `images` is the folder of the files, and `packed` has the images of Parquet files.

    Raises:
        InputError: if a table cannot be read, none of the images exists, or one has two labels or splits.
    """
    found, row = Rows(tables, columns, images, left_out), 0
    for number, source in enumerate(sources):
        row = found.add(number, source, packed[number] if packed else None, row)
    if not found.names:
        _refuse(tables[0], images, left_out)
    names, rows, table = found.names, np.array(found.rows, np.int64), np.array(found.table, np.int32)
    if packed and len({*names}) < len(names):
        starts = np.searchsorted(table, np.arange(len(tables)))
        names = [
            os.fsencode(f"{sources[number].name}:{int(one - rows[starts[number]]):07d}")
            for one, number in zip(rows.tolist(), table.tolist(), strict=True)
        ]
    keys = [name.replace(b"/", b"\0") for name in names]  # as paths: "a/1" before "a b/1"
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    order = _without_repeated(names, order, found, tables)
    splits = found.splits.texts
    if "" in splits and len(splits) > 1:
        unused = found.splits.numbers(order) == splits.index("")
        left_out.add("split", os.fsdecode(names[order[unused][0]]), int(unused.sum()))
        order = order[~unused]
    return TableListing(
        names=PackedNames.of(names[index] for index in order.tolist()),
        texts=found.labels.texts,
        labels=found.labels.numbers(order).astype(np.int64),
        splits=splits,
        split=found.splits.numbers(order),
        row=rows[order],
        table=table[order],
        grouping=None
        if columns.group is None
        else Grouping(column=columns.group, codes=found.groups.numbers(order), values=found.groups.texts),
    )


def _name(path: str | None, packed: PackedImages, at: int, table: Path) -> bytes | None:
    """The name of a packed image: its path, or its row if it has none. None if the row has no image."""
    if not packed.sizes[at]:
        return None
    return (path or packed.paths.text(at) or f"{table.name}:{at:07d}").encode("utf-8", "surrogateescape")


def _without_repeated(
    names: Sequence[bytes], order: NDArray[np.int64], found: Rows, tables: Sequence[Path]
) -> NDArray[np.int64]:
    """`order` without rows that repeat another one.

    Raises:
        InputError: if their labels or splits differ.
    """
    kept = np.ones(len(order), bool)
    for position in range(1, len(order)):
        one, other = int(order[position - 1]), int(order[position])
        if names[one] != names[other]:
            continue
        for codes, what in ((found.labels, "labels"), (found.splits, "splits")):
            first, second = (codes.texts[codes.rows[index]] for index in (one, other))
            if first != second:
                raise InputError(
                    f"{tables[found.table[other]]}: names {os.fsdecode(names[other])} twice, with the {what} '{first}' "
                    f"and '{second}'; remove one of the rows"
                )
        found.left_out.add("repeated", os.fsdecode(names[other]))
        kept[position] = False
    return order[kept]


def _refuse(table: Path, images: Path, left_out: LeftOut) -> None:
    reasons = left_out.reasons
    if "missing" in reasons:
        raise InputError(
            f"{table}: none of its images exists; the first is {reasons['missing'].names[0]}, sought in {images}; give "
            "the folder that the paths are relative to with --images"
        )
    raise InputError(f"{table}: no rows with {'labels' if 'no_label' in reasons else 'images'}; add some")
