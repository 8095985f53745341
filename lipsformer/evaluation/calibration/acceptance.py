"""The choice of when to accept an answer, so that few of the accepted ones are wrong, with a guarantee."""

from __future__ import annotations

import bisect
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.bundle.acceptance import AcceptanceThresholds
from lipsformer.system.errors import InputError

__all__ = ["binomial_tail", "choose_thresholds"]

FAMILIAR = 0.99  # probability that a new photo of the classes is within the distance, if no outliers are given
FIRST_ERRORS = 2  # the first number of accepted photos that is tested may hold these
STEPS = 100  # about as many numbers of accepted photos are tested
LATER_START = 4  # the tests start a second time at this part of the photos
MARGIN = 1e-3  # of the last accepted value, if the next one is not nearer: another batch or runtime rounds differently


def choose_thresholds(
    scores: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    distances: NDArray[np.floating[Any]],
    *,
    max_error: float,
    confidence: float,
    outlier_distances: NDArray[np.floating[Any]] | None = None,
) -> AcceptanceThresholds:
    """The thresholds that accept as many answers as the guarantee of `AcceptanceThresholds` allows.

    Without outliers, a new photo of the classes is within `max_distance` with a probability of at least 99%: it is the
    conformal quantile of the photos' distances, or the largest of them if there are fewer than 99. With outliers,
    `max_distance` maximizes the share of the photos within it less that of the outliers (Youden's J); of equally
    good distances it is the largest.

    Both lie a little beyond the last photo that they accept, so that it is accepted wherever its features are rounded.

    `min_score` controls the error among the photos within that distance (selective classification: Geifman and
    El-Yaniv 2017; Learn then Test: Angelopoulos et al. 2021). See `_controlled_score`. The distance is chosen without
    a look at which photos are classified correctly, so it does not weaken the guarantee.

    Args:
        scores: (N,) of the best class, from 0 to 1. None may have been used for training.
        correct: (N,) whether the best class is the true one.
        distances: (N,) of `FeatureSpace.distances`. Photos with a score or distance that is not finite are never
            accepted, but count in `coverage`.
        max_error: the largest share of the accepted photos that may be wrong.
        confidence: the probability that this holds for new photos.
        outlier_distances: (M,) of photos that show none of the classes.

    Raises:
        InputError: if no threshold can be shown to keep the error, or a value is out of range.
    """
    if not (0 < max_error < 1 and 0 < confidence < 1):
        raise InputError(f"max_error {max_error} and confidence {confidence}: each must be between 0 and 1")
    scores, distances = np.asarray(scores, np.float64), np.asarray(distances, np.float64)
    known = np.isfinite(scores) & np.isfinite(distances)
    if not known.any():
        raise InputError(f"none of {len(scores)} photos has a finite score and distance; give photos of the classes")
    if outlier_distances is None or not len(outlier_distances):
        max_distance = _familiar_distance(distances[known])
    else:
        max_distance = _separating_distance(distances[known], outlier_distances)
    within = known & (distances <= max_distance)
    min_score = _controlled_score(scores[within], correct[within], max_error, confidence)
    return AcceptanceThresholds(
        min_score=min_score,
        max_distance=max_distance,
        max_error=max_error,
        confidence=confidence,
        coverage=float((within & (scores >= min_score)).mean()),
        photos=len(scores),
    )


def binomial_tail(errors: int, photos: int, rate: float) -> float:
    """P(X <= `errors`) for X ~ Bin(`photos`, `rate`), with 0 <= `errors` <= `photos` and 0 < `rate` < 1.

    The ratios of neighboring probabilities are simple. Their products are all probabilities relative to
    P(X = `errors`), and as all terms are positive, none of their digits cancel.
    """
    below, above = np.arange(errors, 0.0, -1), np.arange(errors + 1.0, photos + 1)
    with np.errstate(over="ignore"):  # an infinite sum makes the tail 0, or 1, which it is in float64
        smaller = np.cumprod(below * (1 - rate) / ((photos - below + 1) * rate)).sum()
        larger = np.cumprod((photos - above + 1) * rate / (above * (1 - rate))).sum()
    return float(1 / (1 + larger / (1 + smaller)))


def _familiar_distance(distances: NDArray[np.float64]) -> float:
    """The conformal quantile: a new distance is not larger with a probability of at least `FAMILIAR`."""
    rank = min(math.ceil((len(distances) + 1) * FAMILIAR), len(distances))
    return _beyond(float(np.sort(distances)[rank - 1]), distances)


def _separating_distance(distances: NDArray[np.float64], outlier_distances: NDArray[np.floating[Any]]) -> float:
    """The photo's distance with the largest share of photos within it less that of outliers."""
    photos, outliers = np.sort(distances), np.sort(outlier_distances)
    photos_within = np.searchsorted(photos, photos, side="right")
    outliers_within = np.searchsorted(outliers, photos, side="right")
    difference = photos_within * len(outliers) - outliers_within * len(photos)  # as integers, so that ties are exact
    best = float(photos[difference == difference.max()][-1])
    return _beyond(best, np.concatenate([photos, outliers]))


def _beyond(last: float, values: NDArray[np.float64]) -> float:
    """A threshold above `last`, the highest value to accept: below the next one, and at most `MARGIN` away."""
    above = values[values > last]
    return min(last + abs(last) * MARGIN, (last + float(above.min())) / 2 if len(above) else math.inf)


def _controlled_score(
    scores: NDArray[np.float64], correct: NDArray[np.bool_], max_error: float, confidence: float
) -> float:
    """The lowest score at which the true error of the accepted photos is at most `max_error`, with `confidence`.

    Tested in turn are the m photos with the highest scores, for a fixed grid of m that depends on the number of photos
    alone. The hypothesis that the error at the m-th score exceeds `max_error` is rejected if so few errors among the
    m photos are improbable: P(Bin(m, `max_error`) <= errors) is at most the level. The last score that is rejected is
    the threshold, and 0 if all photos can be accepted. Equal scores are accepted together: m then counts all photos
    that score at least as high as the m-th.

    The level is that of the fallback procedure (Wiens 2003), which keeps the chance of any wrong rejection at most
    1 - `confidence`. Half of it is spent where the grid begins, and half at a quarter of the photos: the few most
    certain answers of a poor model may be worse than the rest. A level is kept while hypotheses are rejected, and lost
    with the first that is not.

    The chance of an error is taken to fall with the score, and so there is a score below which the true error of the
    accepted photos exceeds `max_error`. Let m be on the grid and reach below it. A photo above it is wrong with a
    probability of `max_error`, and one below it with at least that, whatever the number of each. Therefore the errors
    among these m photos are at least as many as Bin(m, `max_error`), and their test passes with a probability of at
    most its level.

    Raises:
        InputError: if no hypothesis is rejected.
    """
    ranking, photos = np.argsort(-scores, kind="stable"), len(scores)
    ranked, errors = scores[ranking], np.cumsum(~correct[ranking])

    def tail(size: int) -> float:
        return binomial_tail(FIRST_ERRORS, size, max_error)

    def grid_from(start: int) -> range:
        return range(start, photos, max(round(photos / STEPS), 1))

    sizes = range(FIRST_ERRORS, photos)
    first = sizes.start + bisect.bisect_left(sizes, True, key=lambda size: tail(size) <= (1 - confidence) / 2)
    starts = {min(first, photos), *([photos // LATER_START] if first < photos // LATER_START else [])}
    level, min_score, failed = 0.0, None, (0, 0)
    for size in sorted({*grid_from(first), *starts, photos}):
        level += (1 - confidence) / len(starts) * (size in starts)
        if not level:
            continue
        accepted = int(np.searchsorted(-ranked, -ranked[size - 1], side="right"))
        wrong = int(errors[accepted - 1])
        if binomial_tail(wrong, accepted, max_error) <= level:
            min_score = 0.0 if accepted == photos else -_beyond(-float(ranked[size - 1]), -ranked)
        else:
            level, failed = 0.0, (wrong, accepted)
    if min_score is None:
        raise InputError(_not_shown(*failed, photos, max_error, confidence))
    return min_score


def _not_shown(wrong: int, accepted: int, photos: int, max_error: float, confidence: float) -> str:
    """Why not even the photos with the highest scores can be accepted."""
    goal = f"an error of at most {max_error:g} with confidence {confidence:g}"
    needed = math.ceil(math.log(1 - confidence) / math.log1p(-max_error))
    if photos < needed:
        return (
            f"{photos} photos are too few to show {goal}: even without a mistake it takes {needed}; "
            "give more photos or a larger --max-error"
        )
    return (
        f"{wrong} of the {accepted} photos with the highest scores are classified wrongly, which is too many to show "
        f"{goal}; give more photos, a larger --max-error or a better model"
    )
