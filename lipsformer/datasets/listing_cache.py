"""Listings that are kept between the runs, as arrays in the cache folder: `indexes/`, one .npz file each, no pickle.

An index is a convenience. One that cannot be read, or is damaged, is as good as none; one that cannot be written is
not written.
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

__all__ = ["load_index", "save_index", "settled"]

SETTLED_NS = 2 * 10**9  # coarser than any file system's clock that we know: FAT's ticks take two seconds

# What numpy and zipfile raise on a file that is damaged or not theirs.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, SyntaxError, struct.error,
               zipfile.BadZipFile, zlib.error)  # fmt: skip


def load_index(kind: str, place: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays that `save_index` kept of `place`; None if there are none of this `kind`."""
    try:
        with _file(kind, place).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # zipfile checks the CRC of each
        return arrays if arrays.pop("title").tobytes() == _title(kind, place) else None
    except READ_ERRORS:
        return None


def save_index(kind: str, place: Path, arrays: Mapping[str, Any]) -> None:
    """Keeps arrays that describe `place`, whole or not at all. `kind` names what they mean, and its version."""
    title = np.frombuffer(_title(kind, place), np.uint8)
    try:
        with atomic_write(_file(kind, place)) as draft, draft.open("wb") as file:
            np.savez(file, title=title, **arrays)
    except (InputError, RuntimeError):  # a cache that cannot be written, or no home for one
        return


def settled(times_ns: Iterable[int], started_ns: int | None = None) -> bool:
    """Whether all these times of change are so far before `started_ns`, or now, that a later change tells.

    A clock that ticks coarsely gives a change right after the listing the time of one right before it.
    """
    before = (time.time_ns() if started_ns is None else started_ns) - SETTLED_NS
    return all(changed <= before for changed in times_ns)


def _file(kind: str, place: Path) -> Path:
    return cache_folder() / "indexes" / f"{hashlib.sha256(_title(kind, place)).hexdigest()[:32]}.npz"


def _title(kind: str, place: Path) -> bytes:
    return os.fsencode(f"{kind} {os.path.realpath(place)}")
