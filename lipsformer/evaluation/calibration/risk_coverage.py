"""How well a number orders photos: a score those classified correctly, a distance those of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under_risk_coverage", "auroc", "risk_coverage"]


def auroc(inside: NDArray[np.floating[Any]], outside: NDArray[np.floating[Any]]) -> float:
    """Probability that a value of `inside` (N,) is lower than one of `outside` (M,), ties half; NaN without values.

    This is the area under the ROC curve, and 0.5 if the values distinguish nothing.
    """
    if not len(inside) or not len(outside):
        return float("nan")
    ordered = np.sort(inside)
    lower = np.searchsorted(ordered, outside, side="left")
    not_higher = np.searchsorted(ordered, outside, side="right")
    return float((lower.sum() + not_higher.sum()) / (2 * len(inside) * len(outside)))


def risk_coverage(
    scores: NDArray[np.floating[Any]], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverages (T,) and error rates (T,) as the threshold falls over the T different scores (El-Yaniv, Wiener 2010).

    The coverage is the share of the photos with at least that score, and the error rate the share of these that is
    classified wrongly.

    Args:
        scores: (N,) without NaN.
        correct: (N,) whether each photo is classified correctly.
    """
    distinct, group = np.unique(-scores, return_inverse=True)
    accepted = np.cumsum(np.bincount(group, minlength=len(distinct)))
    errors = np.cumsum(np.bincount(group[~correct], minlength=len(distinct)))
    return accepted / max(len(scores), 1), errors / accepted


def area_under_risk_coverage(scores: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> float:
    """The mean error rate over all coverages (Geifman et al. 2019), lower is better; NaN without photos.

    Between two coverages of `risk_coverage` the error rate is that of the higher one.
    """
    if not len(scores):
        return float("nan")
    coverages, error_rates = risk_coverage(scores, correct)
    return float(np.diff(coverages, prepend=0.0) @ error_rates)
