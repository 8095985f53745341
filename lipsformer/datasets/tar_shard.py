"""One tar shard in WebDataset's layout: where its images lie, and their labels. Needs no `webdataset` package.

A sample is the members that share their folder and their name up to the first dot: an image, and its label in .cls (a
whole number or a class name) or in .json ("label" or "class"). The shard is walked once; afterwards images are read
where they lie, in any order, as if they were files.
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

from .listing_cache import load_index, save_index, settled
from .names import Names
from .walk import state_of

__all__ = ["COMPRESSED", "Shard"]

KIND = f"tar shard 1 {' '.join(EXTENSIONS)}"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # of the same
LABELS = ("cls", "json")
LONGEST_LABEL = 2**20  # bytes
BLOCK = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """N images in a tar: image i is `sizes[i]` bytes from `offsets[i]` on, of the class `texts[labels[i]]`.

    `names` are those of the members; `texts` are the label texts that occur, sorted; arrays (N,) are int64.
    """

    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Finds the images of a shard, from its index if the file has not changed since that was written.

        Raises:
            InputError: if it cannot be read, is compressed, damaged or cut off, or an image has no label.
        """
        started = time.time_ns()
        try:
            state = np.array([*state_of(path), path.stat().st_size], np.int64)
        except OSError as error:
            raise InputError(f"{path}: no such shard ({error.strerror}); check its name") from None
        arrays = load_index(KIND, path)
        if arrays is not None and np.array_equal(arrays.pop("state", np.zeros(0)), state):
            kept = cls._from_arrays(arrays)
            if kept is not None:
                return kept
        shard = cls._scan(path)
        if settled([int(state[2])], started):
            save_index(KIND, path, {"state": state, **shard._to_arrays()})
        return shard

    @classmethod
    def _scan(cls, path: Path) -> Self:
        try:
            with path.open("rb") as file:
                if file.read(6).startswith(MAGICS) or path.name.lower().endswith(COMPRESSED):
                    raise InputError(
                        f"{path}: compressed, so its images cannot be read one by one; decompress it "
                        "(gunzip, unxz, ...) to a plain .tar: photos hardly shrink anyway"
                    )
                file.seek(0)
                images, labels = _members(file, path)
        except tarfile.TarError as error:
            raise InputError(f"{path}: not a whole tar file ({error}); fetch or write it again") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        texts = [_label(path, key, member.name, labels) for key, member in images.items()]
        distinct = tuple(sorted(set(texts)))
        numbers = {text: number for number, text in enumerate(distinct)}
        return cls(
            names=Names.of(os.fsencode(member.name) for member in images.values()),
            offsets=np.array([member.offset_data for member in images.values()], np.int64),
            sizes=np.array([member.size for member in images.values()], np.int64),
            texts=distinct,
            labels=np.array([numbers[text] for text in texts], np.int64),
        )

    def _to_arrays(self) -> dict[str, NDArray[Any]]:
        texts = Names.of(os.fsencode(text) for text in self.texts)
        arrays = {"offsets": self.offsets, "sizes": self.sizes, "labels": self.labels}
        return arrays | self.names.to_arrays("names") | texts.to_arrays("texts")

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """What `_to_arrays` wrote; None if it does not fit together."""
        try:
            names, texts = Names.from_arrays("names", arrays), Names.from_arrays("texts", arrays)
            numbers = [arrays[name] for name in ("offsets", "sizes", "labels")]
        except (KeyError, ValueError):
            return None
        if any(array.shape != (len(names),) or array.dtype != np.int64 or (array < 0).any() for array in numbers):
            return None
        offsets, sizes, labels = numbers
        if (labels >= len(texts)).any():
            return None
        known = tuple(texts.text(index) for index in range(len(texts)))
        return cls(names=names, offsets=offsets, sizes=sizes, texts=known, labels=labels)


def _members(file: BinaryIO, path: Path) -> tuple[dict[str, tarfile.TarInfo], dict[tuple[str, str], bytes]]:
    """The image of each key, and the contents of its labels by (key, ending)."""
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
                    raise InputError(f"{path}: '{member.name}' is the second image of its name; give each its own")
                images[key] = member
            elif ending in LABELS and member.size <= LONGEST_LABEL:
                file.seek(member.offset_data)
                labels[key, ending] = file.read(member.size)
        # tarfile takes anything but a header for the end: a file that was cut off, too.
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(f"it does not end where it should, after {tar.offset} bytes")
    return images, labels


def _label(path: Path, key: str, name: str, labels: dict[tuple[str, str], bytes]) -> str:
    """The label of an image as a text, whole numbers too."""
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
            f"{path}:{name}: has no label; add '{stem}.cls' with its class, or '{stem}.json' with \"label\", to the tar"
        )
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 19 else text
