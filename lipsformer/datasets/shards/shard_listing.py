"""The listing of one tar shard in WebDataset's layout: its images and their labels, without the `webdataset` package.

A sample is an image and its label in .cls (an integer or a class name) or in .json ("label" or "class"), in the same
folder of the tar. Their names agree up to the label's ending: "a.rf.0.jpg" belongs to "a.rf.0.cls" if that exists, else
to "a.rf.cls", else to "a.cls". (WebDataset splits names at the first dot, which drops names with more dots.) A shard is
scanned once. After that its images are read in place, in any order, as if they were files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.labels import label_text
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.listing_cache import load_listing, natural_numbers, save_listing, settled
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.datasets.walk import path_state
from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

from .tar_members import opened, read_members

__all__ = ["ShardListing"]

KIND = f"tar shard 2 {' '.join(EXTENSIONS)}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardListing:
    """N images in a tar: image i is `sizes[i]` bytes from `offsets[i]`, with the label text `texts[labels[i]]`.

    `names` are those of the members; `texts` are the distinct label texts, sorted. Arrays (N,) are int64. `left_out`
    counts the members that belong to no sample.
    """

    names: PackedNames
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    left_out: LeftOut

    @classmethod
    def open(cls, path: Path) -> Self:
        """Scans a shard, or takes the cached listing if the file has not changed since.

        Raises:
            InputError: if it cannot be read, is compressed, damaged or truncated, or an image has no label.
        """
        started = time.time_ns()
        try:
            state = np.array([*path_state(path), path.stat().st_size], np.int64)
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
        with opened(path) as file:
            images, labels, left_out = read_members(file, path)
        texts = [_label(path, image.name, labels.get(image.key, {})) for image in images]
        distinct = tuple(sorted(set(texts)))
        numbers = {text: number for number, text in enumerate(distinct)}
        return cls(
            names=PackedNames.of(os.fsencode(image.name) for image in images),
            offsets=np.array([image.offset for image in images], np.int64),
            sizes=np.array([image.size for image in images], np.int64),
            texts=distinct,
            labels=np.array([numbers[text] for text in texts], np.int64),
            left_out=left_out,
        )

    def _to_arrays(self) -> dict[str, NDArray[Any]]:
        texts = PackedNames.of(os.fsencode(text) for text in self.texts)
        arrays: dict[str, NDArray[Any]] = {
            "offsets": self.offsets,
            "sizes": self.sizes,
            "labels": self.labels,
            "left_out": self.left_out.to_array(),
        }
        return arrays | self.names.to_arrays("names") | texts.to_arrays("texts")

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self | None:
        """Reads what `_to_arrays` wrote; None if it is inconsistent."""
        try:
            names, texts = PackedNames.from_arrays("names", arrays), PackedNames.from_arrays("texts", arrays)
            offsets, sizes, labels = natural_numbers(arrays, ("offsets", "sizes", "labels"), len(names))
            left_out = LeftOut.from_array(arrays["left_out"])
        except (KeyError, ValueError):
            return None
        if (labels >= len(texts)).any():
            return None
        return cls(names=names, offsets=offsets, sizes=sizes, texts=texts.texts(), labels=labels, left_out=left_out)


def _label(path: Path, name: str, labels: Mapping[str, bytes]) -> str:
    """The label of an image as text in NFC; integers without leading zeros. `labels` are its label files by ending."""
    try:
        if "cls" in labels:
            text = labels["cls"].decode()
        else:
            found = json.loads(labels["json"])
            value = found["label"] if "label" in found else found["class"]
            text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    except (KeyError, ValueError, TypeError, RecursionError):
        text = ""
    label = label_text(text)
    if label is None:
        stem = name.rpartition(".")[0]
        raise InputError(
            f"{path}:{name}: no label; add '{stem}.cls' with its class, or '{stem}.json' with \"label\", to the tar"
        )
    return label
