"""What is unusual in a dataset: images that differ from most others, and classes with few images."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .duplicates import BLANK
from .scan import Scan

__all__ = ["FEW", "ODD", "Oddity", "SmallClass", "find_odd", "find_small_classes"]

Oddity = Literal["blank", "small", "large", "narrow", "rare_mode", "rare_profile"]

SIZE_FACTOR = 4  # of the median shorter side
NARROW, NARROW_FACTOR = 3.0, 2.0  # longer side by shorter one, and its factor relative to the median
RARE = 0.05  # share of the images that can be read
FEW = 10  # images of a class in the training split

ODD: dict[Oddity, str] = {
    "blank": "one color, with no picture in it",
    "small": f"shorter side below 1/{SIZE_FACTOR} of the median",
    "large": f"shorter side above {SIZE_FACTOR} times the median",
    "narrow": f"longer side more than {NARROW:g} times the shorter one, unlike most",
    "rare_mode": f"a pixel mode that at most {RARE:.0%} of the images have",
    "rare_profile": f"a color profile that at most {RARE:.0%} of the images have",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallClass:
    """A class with few readable images in a split: none, or less than `FEW` in the split to train on."""

    name: str
    split: str
    images: int


def find_odd(scan: Scan) -> dict[Oddity, NDArray[np.int64]]:
    """The odd images by what is odd about them, as indices (M,)."""
    read = np.flatnonzero(scan.read)
    if not len(read):
        return {}
    records = scan.records[read]
    sides = np.stack([records["width"], records["height"]]).astype(np.float64)
    shorter, ratio = sides.min(axis=0), sides.max(axis=0) / sides.min(axis=0)
    odd: dict[Oddity, NDArray[np.bool_]] = {
        "blank": records["contrast"] < BLANK,
        "small": shorter * SIZE_FACTOR < np.median(shorter),
        "large": shorter > SIZE_FACTOR * np.median(shorter),
        "narrow": (ratio > NARROW) & (ratio > NARROW_FACTOR * np.median(ratio)),
        "rare_mode": _rare(scan.codes["mode"][read]),
        "rare_profile": _rare(scan.codes["profile"][read]),
    }
    return {what: read[found] for what, found in odd.items() if found.any()}


def find_small_classes(scan: Scan) -> list[SmallClass]:
    """Classes that are too small, in the order of splits and classes.

    A class counts in each split that lists it; in a dataset with a training split, also in that.
    """
    found = []
    trained = next((n for n, split in enumerate(scan.splits) if split.name == "train"), 0)
    for number, split in enumerate(scan.splits):
        read = scan.labels[scan.read & (scan.split_of == number)]
        counts = np.bincount(read, minlength=len(scan.classes))
        for name, count in zip(scan.classes, counts.tolist(), strict=True):
            listed = name in split.classes or number == trained
            if listed and count < (FEW if number == trained else 1):
                found.append(SmallClass(name=name, split=split.name, images=count))
    return found


def _rare(codes: NDArray[np.uint16]) -> NDArray[np.bool_]:
    counts = np.bincount(codes)
    rare: NDArray[np.bool_] = counts[codes] <= RARE * len(codes)
    return rare
