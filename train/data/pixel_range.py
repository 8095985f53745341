"""The range of deep pixels: which values of 16-bit and floating-point images become black and white."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets import Split
from lipsformer.datasets.spread import spread
from lipsformer.images.deep import PixelRange, Values, deep_values, is_deep
from lipsformer.images.open import EXTENSIONS
from lipsformer.system.console import track
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores

__all__ = ["ChosenRange", "measure_pixel_range"]

LOOKED_AT = 64  # images of each file name extension that are looked at for deep pixels, evenly spread over the listing
MEASURED = 1000  # images of the extensions with deep ones that are measured
VALUES = 4096  # of each image, for the quantiles
TAIL = 0.0005  # share of the values on each side that may be outliers
FEW = 0.25  # share of the range that all other values are within, if outliers decide it
DEPTHS = (8, 10, 12, 14, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenRange:
    """A `Preprocessing.pixel_range`, and what to say about it when the training starts; "" if there is nothing."""

    pixel_range: PixelRange | Literal["full"]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Values:
    """The finite values of one deep image: the lowest, the highest, and `VALUES` of them."""

    low: float
    high: float
    whole: bool
    some: NDArray[np.float32]


def measure_pixel_range(split: Split) -> ChosenRange:
    """Measures the range of the deep images of a training split; "full" if it has none.

    The range is that of the lowest and the highest value, outliers included. A range that fills more than half of a bit
    depth (or of 0..1, for floating point) becomes that depth's: values of 0 to 4090 give 0 to 4095, so that 12-bit
    images are read exactly as the 8-bit images made from them.

    At most `MEASURED` images are measured. The choice depends on the listing alone.
    """
    by_ending = _by_ending(split)
    found = _look(split, [index for indices in by_ending.values() for index in _sample(indices, LOOKED_AT)])
    deep = [ending for ending, indices in by_ending.items() if any(found.get(index) for index in indices)]
    if not deep:
        return ChosenRange(pixel_range="full")
    candidates = _sample(sorted(index for ending in deep for index in by_ending[ending]), MEASURED)
    found |= _look(split, [index for index in candidates if index not in found], "measuring deep pixels")
    measured = [values for values in found.values() if values is not None]
    low, high = min(values.low for values in measured), max(values.high for values in measured)
    pixel_range = _whole_depth(low, high, all(values.whole for values in measured))
    note = (
        f"deep pixels in {len(measured)} of {len(found)} sampled images: values {low:g} to {high:g}, "
        f"read as {pixel_range[0]:g} (black) to {pixel_range[1]:g} (white)"
    )
    if len(measured) < len(found):
        note += "; the others have 8 bits and are read as they are"
    lower, upper = np.quantile(np.concatenate([values.some for values in measured]), (TAIL, 1 - TAIL)).tolist()
    if 0 < upper - lower < FEW * (pixel_range[1] - pixel_range[0]):
        note += (
            f"; {1 - 2 * TAIL:.1%} of the values are within {lower:g} to {upper:g}: if the others are outliers, "
            f"--set 'pixel_range=[{lower:g}, {upper:g}]'"
        )
    return ChosenRange(pixel_range=pixel_range, note=note)


def _by_ending(split: Split) -> dict[str, list[int]]:
    """The images by file name extension: formats with deep pixels are rarely mixed with others under one."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for index, name in enumerate(split.names()):
        ending = PurePosixPath(name).suffix.lower()
        found[ending if ending in EXTENSIONS else ""].append(index)
    return found


def _look(split: Split, indices: Sequence[int], title: str = "looking for deep pixels") -> dict[int, _Values | None]:
    """The values of each readable image, None if it is not deep."""

    def look(index: int) -> _Values | InputError | None:
        try:
            image = split.open(index, smallest=lambda _: (0, 0))  # a photo in a fraction of the time
        except InputError as error:  # reported when the training comes to it
            return error
        return _values(deep_values(image)) if is_deep(image) else None

    with ThreadPoolExecutor(cores()) as pool, track(title, len(indices)) as advance:
        found: dict[int, Any] = {}
        for index, values in zip(indices, pool.map(look, indices), strict=True):
            if not isinstance(values, InputError):
                found[index] = values
            advance(1, "")
    return found


def _values(values: Values) -> _Values | None:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    return _Values(
        low=float(finite.min()),
        high=float(finite.max()),
        whole=bool((finite == np.floor(finite)).all()),
        some=finite[:: max(1, len(finite) // VALUES)][:VALUES].astype(np.float32),
    )


def _whole_depth(low: float, high: float, whole: bool) -> PixelRange:
    """The bit depth (or 0..1) that the values from `low` to `high` fill more than half of, else their own range."""
    tops = [2.0**bits - 1 for bits in DEPTHS]
    top = next((top for top in (tops if whole else [1.0, *tops]) if top >= high), np.inf)
    if low >= 0 and high - low > top / 2:
        return 0.0, top
    return low, high if high > low else low + 1


def _sample(indices: Sequence[int], count: int) -> list[int]:
    """Up to `count` of `indices`, evenly spread, in order."""
    return [indices[position] for position in spread(count, len(indices)).tolist()]
