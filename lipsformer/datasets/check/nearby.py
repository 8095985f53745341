"""Pairs of points that are close together, without comparing each with each: locality-sensitive hashing.

Charikar, "Similarity estimation techniques from rounding algorithms" (STOC 2002): on which side of a random hyperplane
two vectors lie differs with probability angle / pi. Points that agree on all hyperplanes of a band are candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pairs", "candidate_pairs", "within"]

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
Points = NDArray[np.int8]

# Points at an angle of 0.13 (the radius of near duplicates) agree on a band of 16 in 51% of the cases, and on one of 10
# bands in 99.9%; at 0.06, in all but one of a million.
BANDS = 10
FEWEST_BITS, SPARE_BITS = 16, 2  # of a band; more points need more, or chance candidates grow with their square
ROWS = 8_000  # to work on at a time
FIRST = 16  # terms that rule out most candidates


def candidate_pairs(points: Points, others: Points) -> Iterator[Pairs]:
    """Pairs of one of `points` (N, D) and one of `others` (M, D) that are likely close, as indices (i, j) in blocks.

    A pair may come more than once. Memory does not depend on the number of pairs.
    """
    bits = max(FEWEST_BITS, len(points).bit_length() + SPARE_BITS)
    planes = np.random.default_rng(0).standard_normal((BANDS, points.shape[1], bits), np.float32)
    for band in planes:
        yield from _meetings(_sides(points, band), _sides(others, band))


def within(points: Points, others: Points, pairs: Pairs, radius: float) -> NDArray[np.bool_]:
    """Whether the points of each pair are at most `radius` apart, as (P,) booleans. Distances are Euclidean."""
    close = np.zeros(len(pairs[0]), bool)
    for start in range(0, len(close), ROWS):
        i, j = (indices[start : start + ROWS] for indices in pairs)
        left = np.flatnonzero(_squares(points[i, :FIRST], others[j, :FIRST]) <= radius**2)
        close[start + left] = _squares(points[i[left]], others[j[left]]) <= radius**2
    return close


def _sides(points: Points, planes: NDArray[np.float32]) -> NDArray[np.int64]:
    """On which sides of the `planes` (D, B) the points lie, as a number of B bits for each."""
    weights = 1 << np.arange(planes.shape[1], dtype=np.int64)
    blocks = (points[start : start + ROWS] for start in range(0, max(1, len(points)), ROWS))
    return np.concatenate([(block.astype(np.float32) @ planes > 0) @ weights for block in blocks])


def _meetings(keys: NDArray[np.int64], others: NDArray[np.int64]) -> Iterator[Pairs]:
    """All (i, j) with keys[i] == others[j], in blocks of at most one j for each i."""
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    place, end = np.searchsorted(ordered, keys, "left"), np.searchsorted(ordered, keys, "right")
    rows = np.flatnonzero(place < end)
    while len(rows):
        yield rows, order[place[rows]]
        place[rows] += 1
        rows = rows[place[rows] < end[rows]]


def _squares(left: Points, right: Points) -> NDArray[np.int64]:
    difference = left.astype(np.int16) - right
    squares: NDArray[np.int64] = np.einsum("ij,ij->i", difference, difference, dtype=np.int64)
    return squares
