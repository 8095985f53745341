"""Certified radii: how far an image must move, by the network's Lipschitz bound, before another class can win."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lipsformer.system.validation import one_line_errors

__all__ = ["MOST_CLASSES", "SAFETY", "Certificate", "Int8Bound"]

MOST_CLASSES = 256  # of a model with a certificate, which has a number for each pair
# Measured rounding counts this many times: it is measured on some images and has to hold for all.
SAFETY = 4.0
OUTWARD = 1e-9  # relative: float64 leaves errors of about 1e-15 in a radius

Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
STRICT = ConfigDict(strict=True, extra="forbid")


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Int8Bound:
    """What int8 may change, by the theorem in `export/int8/bound.py`.

    For every image, the features of the graph are within `rounding` (L2) of those of a network whose Lipschitz bound,
    from pixels in 0..1 to the features, is `lipschitz`; `error` is what float32 may change of a lead in addition, as
    measured. The rest is about the `photos` of the parity gate: the median bound of how far the features are from
    those of the float32 network (`bound`), the median of what they are (`measured`), and the share of photos whose
    class such a bound does not let change (`unchanged`).

    Raises:
        InputError: if a field is invalid.
    """

    lipschitz: Positive
    rounding: Finite
    error: Finite
    photos: Annotated[int, Field(ge=1)]
    bound: Finite
    measured: Finite
    unchanged: Annotated[float, Field(ge=0.0, le=1.0)]


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Certificate:
    """What the radii of a model are computed from.

    With L the bound from pixels in 0..1 to the features (`lipschitz`), the lead of class i over class j changes by at
    most L |w_i - w_j| r within a ball of radius r (L2 over all pixels), where w are the rows of the head
    (`distances` has |w_i - w_j|, logits being divided by the temperature). `error` is what rounding may change of a
    lead, at the image and at the one it is compared with together, and `rounding` how far it may move the features in
    addition (L2), at both together.

    Raises:
        InputError: if a field is invalid.
    """

    lipschitz: Positive
    distances: tuple[tuple[Finite, ...], ...]
    error: Finite
    rounding: Finite = 0.0

    def __post_init__(self) -> None:
        if any(len(row) != len(self.distances) for row in self.distances):
            raise ValueError("distances: a number for each pair of classes is needed")

    @functools.cached_property
    def _distances(self) -> NDArray[np.float64]:
        return np.asarray(self.distances)

    def radii(self, logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Certified radii (N,) of the top classes of logits (N, K), in L2 of pixels from 0 to 1; 0 promises nothing."""
        wide = logits.astype(np.float64)
        rows, top = np.arange(len(wide)), wide.argmax(axis=1)
        leads = wide[rows, top, None] - wide - self.error - self.rounding * self._distances[top]
        reach = self.lipschitz * self._distances[top]
        quotients = np.divide(leads, reach, out=np.full_like(leads, np.inf), where=reach > 0)
        quotients[(reach == 0) & (leads <= 0)] = 0.0  # two classes with the same weights: only their biases differ
        quotients[rows, top] = np.inf
        smallest = quotients.min(axis=1) * (1 - OUTWARD)
        radii: NDArray[np.float64] = np.clip(np.nan_to_num(smallest, nan=0.0, posinf=1e9), 0.0, None)
        return radii

    def loosened(self, change: float) -> Self:
        """The certificate of another runtime, whose logits differ from this one's by `change` at most, as measured."""
        return dataclasses.replace(self, error=self.error + 4 * SAFETY * change)

    def of_int8(self, bound: Int8Bound) -> Self:
        """The certificate of an int8 graph: of the network that `bound` is about, with its rounding at both ends."""
        return dataclasses.replace(self, lipschitz=bound.lipschitz, error=bound.error, rounding=2 * bound.rounding)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `dataclasses.asdict` gave, after JSON."""
        return cls(**{**data, "distances": tuple(tuple(row) for row in data["distances"])})
