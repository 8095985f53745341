"""Temperature scaling: one number that makes the probabilities of a model agree with how often it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_TEMPERATURE", "MOST_TEMPERATURE", "fit_temperature"]

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
FEW_IMAGES = 1000  # with fewer, the temperature must help on images that it was not fitted to
FOLDS = 5
STEPS = 40  # at most; a minimum at a limit needs 35 for 9 digits
STILL = 1e-9  # relative change of beta, below which it has converged
CHUNK = 2**18  # logits that are in memory as float64 at once

Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def fit_temperature(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    total: Total | None = None,
    *,
    positions: NDArray[np.integer[Any]] | None = None,
) -> float:
    """The temperature T that minimizes the mean cross entropy of `logits` / T (Guo et al. 2017).

    T is at least 0.05 and at most 20. It is rounded to 4 significant digits, so that it does not depend on the order
    of summation. The predicted classes stay the same. Images with logits that are not finite are left out.

    T = 1 is returned if the images do not determine a better one:

    - There are no images, or each is classified correctly. The cross entropy would fall without end as T does.
    - There are fewer than 1,000 images, and in 5-fold cross-validation the fitted temperatures do not lower the
      cross entropy.

    If logits say nothing about the labels, T is 20: the probabilities become nearly equal.

    Args:
        logits: (N, K), of any floating-point type. They are converted to float64 in chunks.
        labels: (N,) indices of the true classes.
        total: sums a small array over the processes of a training, and gives each of them the same result. A process
            passes only its own rows, or none. All processes call it equally often. By default there is one process.
        positions: (N,) indices of the images in their split, which assign them to the folds; 0 to N - 1 by default.
    """
    total = total or _one_process
    if positions is None:
        positions = np.arange(len(logits))
    rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
    images = Images(logits, labels, rows)
    (count,) = total(np.array([len(rows)], np.float64))
    temperature = _minimize(images, total)
    if count >= FEW_IMAGES:
        return temperature
    fold_of, gain = positions[rows] % FOLDS, 0.0
    for fold in range(FOLDS):
        fitted = _minimize(images._replace(rows=rows[fold_of != fold]), total)
        held_out = images._replace(rows=rows[fold_of == fold])
        gain += held_out.cross_entropy(1.0) - held_out.cross_entropy(1 / fitted)
    (gain,) = total(np.array([gain]))
    return temperature if gain > 0 else 1.0


class Images(NamedTuple):
    """The images at `rows` (M,) of `logits` (N, K) and `labels` (N,). Sums over them are float64; beta is 1 / T."""

    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    rows: NDArray[np.intp]

    def chunks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Logits (n, K) less the largest of their image, and those of the true classes (n,)."""
        size = 1 + CHUNK // (1 + self.logits.shape[1])
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            shifted = self.logits[rows].astype(np.float64)
            shifted -= shifted.max(axis=1, keepdims=True)
            yield shifted, shifted[np.arange(len(rows)), self.labels[rows]]

    def mistakes(self) -> int:
        """Number of images of which another class has a higher logit than the true one."""
        return sum(int((true < 0).sum()) for _, true in self.chunks())

    def cross_entropy(self, beta: float) -> float:
        """Sum over the images, in nats."""
        return sum(
            float((np.log(np.exp(beta * shifted).sum(axis=1)) - beta * true).sum()) for shifted, true in self.chunks()
        )

    def derivatives(self, beta: float) -> NDArray[np.float64]:
        """First and second derivative of `cross_entropy` by beta, (2,).

        They are the sums of E[z] - z of the true class, and of Var[z], for logits z of classes drawn from the softmax.
        """
        sums = np.zeros(2)
        for shifted, true in self.chunks():
            weights = np.exp(beta * shifted)
            weight = weights.sum(axis=1)
            mean = np.einsum("nk,nk->n", weights, shifted) / weight
            mean_square = np.einsum("nk,nk,nk->n", weights, shifted, shifted) / weight
            sums += (mean - true).sum(), (mean_square - mean**2).sum()
        return sums


def _minimize(images: Images, total: Total) -> float:
    """The best temperature for the images of all processes, by Newton's method in beta = 1 / T.

    The cross entropy is convex in beta. The sign of its slope narrows the bracket, and a Newton step that leaves the
    bracket is replaced by one to its geometric mean.
    """
    (mistakes,) = total(np.array([images.mistakes()], np.float64))
    least, most, beta = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE, 1.0
    for _ in range(STEPS):
        slope, curvature = total(images.derivatives(beta)).tolist()
        least, most = (least, beta) if slope > 0 else (beta, most)
        newton = beta - slope / curvature if curvature > 0 else math.nan
        last, beta = beta, newton if least <= newton <= most else math.sqrt(least * most)
        if abs(beta - last) <= STILL * last:  # in all processes at once: their sums are the same
            break
    return float(f"{1 / beta:.4g}") if mistakes else 1.0


def _one_process(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values
