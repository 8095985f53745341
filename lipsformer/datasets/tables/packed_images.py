"""The encoded images of a Parquet file, unpacked once into one file of the cache folder.

Inside Parquet an image can only be reached through its whole row group. Unpacked it is read in place, in any order, so
shuffling and resuming are exact and cheap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.file_part import read_part
from lipsformer.datasets.listing_cache import load_listing, natural_numbers, save_listing
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.datasets.reader import Split
from lipsformer.datasets.walk import path_state
from lipsformer.system.atomic import atomic_write
from lipsformer.system.console import say
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cache_folder

from .rows import binary_columns, parquet_file

__all__ = ["PackedImages", "PackedSplit"]

KIND = "parquet images 1"
BATCH = 64  # rows: images are large


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedImages:
    """N images of a column: image i is `sizes[i]` bytes from `offsets[i]` of `file`; `paths` are their names or empty.

    A size of 0 means that the row has no image.
    """

    file: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    paths: PackedNames

    @classmethod
    def open(cls, table: Path, column: str) -> Self:
        """Unpacks the images of a Parquet file, unless the cache folder has them.

        Raises:
            InputError: if it cannot be read, or the cache folder cannot be written.
        """
        state = np.array([*path_state(table), table.stat().st_size], np.int64)
        name, version = (
            hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
            for text in (f"{os.path.realpath(table)} {column}", str(state.tolist()))
        )
        file, kind = cache_folder() / "parquet" / f"{name}-{version}.images", f"{KIND} {column}"
        arrays = load_listing(kind, table)
        if arrays is not None and np.array_equal(arrays.get("state", np.zeros(0)), state) and file.is_file():
            found = cls._from_arrays(file, arrays)
            if found is not None and file.stat().st_size == int(found.sizes.sum()):
                return found
        say(f"{table}: unpacking its images into {file.parent}")
        with atomic_write(file) as draft:
            found = cls._unpack(table, column, draft, file)
        for old in file.parent.glob(f"{name}-*.images"):
            if old != file:
                old.unlink(missing_ok=True)
        arrays = {"state": state, "offsets": found.offsets, "sizes": found.sizes, **found.paths.to_arrays("paths")}
        save_listing(kind, table, arrays)
        return found

    @classmethod
    def _unpack(cls, table: Path, column: str, draft: Path, file: Path) -> Self:
        import pyarrow as pa

        struct = binary_columns(table)[column]
        sizes: list[int] = []
        paths: list[bytes] = []
        with draft.open("wb") as target:
            try:
                for batch in parquet_file(table).iter_batches(BATCH, columns=[column]):
                    for value in batch.column(column).to_pylist():
                        content, path = (
                            (value or {}).get("bytes") if struct else value,
                            (value or {}).get("path") if struct else None,
                        )
                        target.write(content or b"")
                        sizes.append(len(content or b""))
                        paths.append(path.encode() if isinstance(path, str) else b"")
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{table}: cannot be unpacked after row {len(sizes)} ({error}); check it") from None
        ends = np.cumsum(np.array(sizes, np.int64))
        lengths = np.array(sizes, np.int64)
        return cls(file=file, offsets=ends - lengths, sizes=lengths, paths=PackedNames.of(paths))

    @classmethod
    def _from_arrays(cls, file: Path, arrays: dict[str, NDArray[Any]]) -> Self | None:
        try:
            paths = PackedNames.from_arrays("paths", arrays)
            offsets, sizes = natural_numbers(arrays, ("offsets", "sizes"), len(paths))
        except (KeyError, ValueError):
            return None
        return cls(file=file, offsets=offsets, sizes=sizes, paths=paths)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedSplit(Split):
    """Images of Parquet files: image i is `sizes[i]` bytes from `offsets[i]` of `contents[table[i]]`.

    i is a position in storage. `files` are the images' names, `tables` the Parquet files that they come from.
    """

    root: Path
    files: PackedNames
    tables: tuple[Path, ...]
    contents: tuple[Path, ...]
    table: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def image_name(self, index: int) -> str:
        """See `Split`."""
        return self.files.text(int(self.members[index]))

    def where(self, index: int) -> str:
        """See `Split`."""
        return f"{self.tables[self.table[self.members[index]]]}:{self.image_name(index)}"

    def encoded(self, index: int) -> bytes:
        """See `Split`."""
        position = int(self.members[index])
        path = self.contents[self.table[position]]
        return read_part(path, int(self.offsets[position]), int(self.sizes[position]), self.where(index))
