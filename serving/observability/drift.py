"""Drift: the latest answers of a worker, compared with the answers to the photos that the model was calibrated on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from lipsformer.bundle.reference import Histogram, ReferenceHistograms, population_stability_index
from lipsformer.inference.classification import Classification

from .metrics import Metrics

__all__ = ["DriftMonitor"]

PUBLISH_SECONDS = 1.0  # after an answer: computing the index for each would cost more than the rest


class Binned(NamedTuple):
    """An answer: the bin of each histogram, and whether it was not accepted."""

    bins: tuple[int, ...]
    not_accepted: bool


class DriftMonitor:
    """Counts the latest answers in the bins of reference histograms. Use it in one event loop.

    Args:
        reference: of the bundle.
        metrics: get the indices, a moment after an answer.
        window: number of answers.
    """

    def __init__(self, reference: ReferenceHistograms, metrics: Metrics, *, window: int) -> None:
        self._histograms: dict[str, Histogram] = {"classes": reference.classes, "scores": reference.scores}
        if reference.distances is not None:
            self._histograms["distances"] = reference.distances
        self._metrics = metrics
        self._window = window
        self._answers: deque[Binned] = deque()
        self._counts = [[0] * len(histogram.counts) for histogram in self._histograms.values()]
        self._not_accepted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def put(self, classification: Classification) -> None:
        """Counts an answer; the oldest one is forgotten if the window is full."""
        if self._closed:
            return
        best, distance = classification[0], classification.distance
        values = {"classes": best.index, "scores": best.score, "distances": 0.0 if distance is None else distance}
        bins = tuple(histogram.bin_of(values[name]) for name, histogram in self._histograms.items())
        self._answers.append(Binned(bins, classification.accepted is False))
        self._count(self._answers[-1], 1)
        if len(self._answers) > self._window:
            self._count(self._answers.popleft(), -1)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PUBLISH_SECONDS, self._publish)

    def close(self) -> None:
        """Withdraws what was published: another model answers now."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._answers.clear()
        self._counts = [[0] * len(counts) for counts in self._counts]
        self._not_accepted = 0
        self._publish()

    def _count(self, answer: Binned, step: int) -> None:
        for counts, index in zip(self._counts, answer.bins, strict=True):
            counts[index] += step
        self._not_accepted += step * answer.not_accepted

    def _publish(self) -> None:
        self._timer = None
        self._metrics.drift_answers.set(len(self._answers))
        self._metrics.drift_not_accepted.set(self._not_accepted / max(len(self._answers), 1))
        for (name, histogram), counts in zip(self._histograms.items(), self._counts, strict=True):
            self._metrics.drifts(name, population_stability_index(histogram.counts, counts))
