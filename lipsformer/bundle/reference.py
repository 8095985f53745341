"""The answers that a model gave to reference photos, as histograms, to see when those of a server drift from them."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, InstanceOf
from pydantic.dataclasses import dataclass

from lipsformer.system.errors import InputError
from lipsformer.system.validation import one_line_errors

__all__ = ["Histogram", "ReferenceHistograms", "population_stability_index"]

BINS = 10  # deciles, as usual for the index
MOST_CLASS_BINS = 20  # with more classes, a bin is a range of them: a bin for each would be mostly chance
SCORE_DIGITS = 3  # finer bins of scores near 1 would differ between precisions
STRICT = ConfigDict(strict=True, extra="forbid")


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Histogram:
    """Counts of values: `counts[i]` are above `edges[i - 1]` and not above `edges[i]`.

    Raises:
        InputError: if there is not one count more than edges, or the edges do not rise.
    """

    edges: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or not sum(self.counts):
            raise ValueError(f"histogram: {len(self.edges)} edges need {len(self.edges) + 1} counts, not all of them 0")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("histogram: its edges do not rise")

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]], edges: NDArray[np.floating[Any]]) -> Self:
        """The histogram of `values` (N,) with these edges."""
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        return cls(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))

    def bin_of(self, value: float) -> int:
        """The index of the bin that a value belongs to."""
        return bisect.bisect_left(self.edges, value)


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReferenceHistograms:
    """Histograms of the top classes (their indices), of their scores, and of distances if answers can be refused.

    Raises:
        InputError: if a field is invalid.
    """

    classes: InstanceOf[Histogram]
    scores: InstanceOf[Histogram]
    distances: InstanceOf[Histogram] | None = None

    @classmethod
    def of(
        cls,
        predicted: NDArray[np.integer[Any]],
        scores: NDArray[np.floating[Any]],
        distances: NDArray[np.floating[Any]] | None,
        classes: int,
    ) -> Self | None:
        """The histograms of the answers to N photos, in bins of about equal counts; None without photos.

        Args:
            predicted: (N,) indices of the top classes.
            scores: (N,) their calibrated scores. Photos with one that is not finite do not count.
            distances: (N,) of `FeatureSpace.distances`, if the model has one.
            classes: their number.
        """
        finite = np.isfinite(scores) & (True if distances is None else np.isfinite(distances))
        if not finite.any():
            return None
        found, scores = predicted[finite].astype(np.float64), scores[finite]
        distances = None if distances is None else distances[finite]
        few = classes <= MOST_CLASS_BINS
        edges = np.arange(classes - 1) + 0.5 if few else _quantiles(found + 0.5, MOST_CLASS_BINS)
        return cls(
            classes=Histogram.of(found, edges),
            scores=Histogram.of(scores, _quantiles(scores, BINS, SCORE_DIGITS)),
            distances=None if distances is None else Histogram.of(distances, _quantiles(distances, BINS)),
        )

    @classmethod
    def from_dict(cls, data: Any) -> Self | None:
        """The histograms from plain data, None from None.

        Raises:
            InputError: if the data are not such histograms.
        """
        if data is None:
            return None
        try:
            histograms = {name: None if found is None else _histogram(found) for name, found in data.items()}
            return cls(**histograms)  # type: ignore[arg-type]
        except (AttributeError, TypeError) as error:
            raise InputError(f"reference histograms: cannot be read ({error}); calibrate the model again") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def population_stability_index(reference: Sequence[int], found: Sequence[int]) -> float:
    """How far the shares of bins have moved, less what chance alone gives for so few values; 0 without any.

    The index is the sum of (q - p) ln(q / p) over the bins, with shares p of the `reference` counts and q of those
    `found` (Siddiqi 2006), half a count added to each so that empty bins have a share. Between two samples of one
    distribution it is on average (B - 1)(1 / M + 1 / N) for B bins and M and N values (Yurdakul 2018), which is
    subtracted. By convention more than 0.1 is some drift, and more than 0.25 much.
    """
    bins, values, others = len(reference), sum(reference), sum(found)
    if not values or not others:
        return 0.0
    index = 0.0
    for before, after in zip(reference, found, strict=True):
        p, q = (before + 0.5) / (values + 0.5 * bins), (after + 0.5) / (others + 0.5 * bins)
        index += (q - p) * math.log(q / p)
    return max(0.0, index - (bins - 1) * (1 / values + 1 / others))


def _quantiles(values: NDArray[Any], bins: int, digits: int | None = None) -> NDArray[np.float64]:
    """Edges of at most `bins` bins with about equal counts, none of them empty; rounded to `digits`."""
    shares = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    edges = np.quantile(values, shares, method="lower").astype(np.float64)
    edges = np.unique(edges if digits is None else edges.round(digits))
    inner: NDArray[np.float64] = edges[(edges < values.max()) & (edges >= values.min())]
    return inner


def _histogram(data: dict[str, Any]) -> Histogram:
    return Histogram(**{name: tuple(found) for name, found in data.items()})
