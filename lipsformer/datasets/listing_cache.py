"""Cached listings of large datasets: arrays in one .npz file each, without pickle, in `indexes/` of the cache folder.

The cache is optional. A listing that cannot be read or is damaged counts as missing; one that cannot be written is
skipped.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cache_folder

__all__ = ["load_listing", "natural_numbers", "save_listing", "settled"]

SETTLED_NS = 2 * 10**9  # the coarsest file system clock that we know: FAT counts in two seconds

# What numpy and zipfile raise on a damaged or foreign file.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, SyntaxError, struct.error,
               zipfile.BadZipFile, zlib.error)  # fmt: skip


def load_listing(kind: str, place: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays that `save_listing` stored for `place`; None if there are none of this `kind`."""
    try:
        with _file(kind, place).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # zipfile checks the CRC of each
        return arrays if arrays.pop("title").tobytes() == _title(kind, place) else None
    except READ_ERRORS:
        return None


def save_listing(kind: str, place: Path, arrays: Mapping[str, Any]) -> None:
    """Stores arrays that describe `place`, atomically. `kind` names their meaning and its version."""
    title = np.frombuffer(_title(kind, place), np.uint8)
    try:
        with atomic_write(_file(kind, place)) as draft, draft.open("wb") as file:
            np.savez(file, title=title, **arrays)
    except (InputError, RuntimeError):  # the cache folder cannot be written, or there is no home folder
        return


def natural_numbers(arrays: Mapping[str, NDArray[Any]], names: Iterable[str], count: int) -> list[NDArray[np.int64]]:
    """The arrays (count,) of these names, int64 and not negative.

    Raises:
        KeyError: if one is missing.
        ValueError: if one is different.
    """
    found = [arrays[name] for name in names]
    if any(array.shape != (count,) or array.dtype != np.int64 or (array < 0).any() for array in found):
        raise ValueError("not one natural number for each entry")
    return found


def settled(times_ns: Iterable[int], started_ns: int | None = None) -> bool:
    """Whether these modification times are old enough, at `started_ns` or now, for a later change to differ.

    With a coarse clock, a change just after the listing can get the same time as one just before it.
    """
    before = (time.time_ns() if started_ns is None else started_ns) - SETTLED_NS
    return all(changed <= before for changed in times_ns)


def _file(kind: str, place: Path) -> Path:
    return cache_folder() / "indexes" / f"{hashlib.sha256(_title(kind, place)).hexdigest()[:32]}.npz"


def _title(kind: str, place: Path) -> bytes:
    return os.fsencode(f"{kind} {os.path.realpath(place)}")
