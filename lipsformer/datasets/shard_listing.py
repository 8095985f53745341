"""The listing of one tar shard in WebDataset's layout: its images and their labels, without the `webdataset` package.

A sample is all members that share their folder and their name up to the first dot: an image, and its label in .cls (an
integer or a class name) or in .json ("label" or "class"). A shard is scanned once. After that its images are read in
place, in any order, as if they were files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

from .listing_cache import load_listing, save_listing, settled
from .packed_names import PackedNames
from .walk import folder_state

__all__ = ["COMPRESSED", "ShardListing"]

KIND = f"tar shard 1 {' '.join(EXTENSIONS)}"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # of those formats
LABELS = ("cls", "json")
LONGEST_LABEL = 2**20  # bytes
BLOCK = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardListing:
    """N images in a tar: image i is `sizes[i]` bytes from `offsets[i]`, with the label text `texts[labels[i]]`.

    `names` are those of the members; `texts` are the distinct label texts, sorted. Arrays (N,) are int64.
    """

    names: PackedNames
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Scans a shard, or takes the cached listing if the file has not changed since.

        Raises:
            InputError: if it cannot be read, is compressed, damaged or truncated, or an image has no label.
        """
        started = time.time_ns()
        try:
            state = np.array([*folder_state(path), path.stat().st_size], np.int64)
        except OSError as error:
            raise InputError(f"{path}: no such shard ({error.strerror}); check its name") from None
        arrays = load_listing(KIND, path)
        if arrays is not None and np.array_equal(arrays.pop("state", np.zeros(0)), state):
            cached = cls._from_arrays(arrays)
            if cached is not None:
                return cached
        listing = cls._scan(path)
        if settled([int(state[2])], started):
            save_listing(KIND, path, {"state": state, **listing._to_arrays()})
        return listing

    @classmethod
    def _scan(cls, path: Path) -> Self:
        try:
            with path.open("rb") as file:
                if file.read(6).startswith(MAGICS) or path.name.lower().endswith(COMPRESSED):
                    raise InputError(
                        f"{path}: compressed, so its images cannot be read one by one; decompress it to a plain .tar "
                        "(gunzip, unxz, ...): photos hardly shrink anyway"
                    )
                file.seek(0)
                images, labels = _members(file, path)
        except tarfile.TarError as error:
            raise InputError(f"{path}: not a complete tar file ({error}); fetch or write it again") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        texts = [_label(path, key, member.name, labels) for key, member in images.items()]
        distinct = tuple(sorted(set(texts)))
        numbers = {text: number for number, text in enumerate(distinct)}
        return cls(
            names=PackedNames.of(os.fsencode(member.name) for member in images.values()),
            offsets=np.array([member.offset_data for member in images.values()], np.int64),
            sizes=np.array([member.size for member in images.values()], np.int64),
            texts=distinct,
            labels=np.array([numbers[text] for text in texts], np.int64),
        )

    def _to_arrays(self) -> dict[str, NDArray[Any]]:
        texts = PackedNames.of(os.fsencode(text) for text in self.texts)
        arrays = {"offsets": self.offsets, "sizes": self.sizes, "labels": self.labels}
        return arrays | self.names.to_arrays("names") | texts.to_arrays("texts")

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """Reads what `_to_arrays` wrote; None if it is inconsistent."""
        try:
            names, texts = PackedNames.from_arrays("names", arrays), PackedNames.from_arrays("texts", arrays)
            numbers = [arrays[name] for name in ("offsets", "sizes", "labels")]
        except (KeyError, ValueError):
            return None
        if any(array.shape != (len(names),) or array.dtype != np.int64 or (array < 0).any() for array in numbers):
            return None
        offsets, sizes, labels = numbers
        if (labels >= len(texts)).any():
            return None
        return cls(names=names, offsets=offsets, sizes=sizes, texts=texts.texts(), labels=labels)


def _members(file: BinaryIO, path: Path) -> tuple[dict[str, tarfile.TarInfo], dict[tuple[str, str], bytes]]:
    """Reads the headers of a tar: the image of each key, and the label files by (key, extension)."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[tuple[str, str], bytes] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            key, ending = f"{folder}/{stem}", ending.lower()
            if not stem or not member.isreg() or member.issparse():
                continue
            if f".{ending}" in EXTENSIONS:
                if key in images:
                    raise InputError(f"{path}: '{member.name}' is the second image of that name; rename one")
                images[key] = member
            elif ending in LABELS and member.size <= LONGEST_LABEL:
                file.seek(member.offset_data)
                labels[key, ending] = file.read(member.size)
        # tarfile takes anything that is not a header as the end, so it misses truncated files.
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(f"it ends too early, after {tar.offset} bytes")
    return images, labels


def _label(path: Path, key: str, name: str, labels: dict[tuple[str, str], bytes]) -> str:
    """The label of an image as text; integers without leading zeros."""
    try:
        if (key, "cls") in labels:
            text = labels[key, "cls"].decode()
        else:
            found = json.loads(labels[key, "json"])
            value = found["label"] if "label" in found else found["class"]
            text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    except (KeyError, ValueError, TypeError, RecursionError):
        text = ""
    text = text.strip()
    if not text or not text.isprintable():
        stem = name.removesuffix(name.rpartition("/")[2]) + name.rpartition("/")[2].partition(".")[0]
        raise InputError(
            f"{path}:{name}: no label; add '{stem}.cls' with its class, or '{stem}.json' with \"label\", to the tar"
        )
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 19 else text
