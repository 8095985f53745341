"""Admission control: bounds the images in flight, and rejects requests that would miss their deadline."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from lipsformer.serving.observability import Metrics

__all__ = ["Admission", "Overloaded", "Slot"]

SMOOTHING = 0.05  # weight of the newest gap between two answers: an average over about the last twenty


class Overloaded(Exception):  # noqa: N818 - a state of the server, not an error in its code
    """The server accepts no more work now; it is worth retrying after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int = 1, reason: str = "overloaded") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class Admission:
    """Slots for images between their acceptance and their answer.

    Args:
        max_pending: number of slots.
        deadline: seconds after which an answer comes too late.
        metrics: counts the images accepted, answered and pending.
    """

    def __init__(self, *, max_pending: int, deadline: float, metrics: Metrics) -> None:
        self.max_pending = max_pending
        self.deadline = deadline
        self.pending = 0
        self._metrics = metrics
        self._gap = 0.0  # smoothed seconds from one answer to the next, while there is work
        self._last = 0.0

    @property
    def expected_wait(self) -> float:
        """Seconds until an image admitted now would be answered, at the current throughput."""
        return self.pending * self._gap

    def check(self) -> None:
        """Raises what `enter` would raise, before more is spent on a request."""
        if self.pending >= self.max_pending:
            raise self._overloaded(f"{self.pending} images are pending already")
        if self.expected_wait > self.deadline:
            raise self._overloaded(f"an answer would take {self.expected_wait:.0f} seconds now")

    def enter(self) -> Slot:
        """A slot for one image, to be used as a context, which frees it.

        Raises:
            Overloaded: if every slot is taken, or the answer would come too late.
        """
        self.check()
        if self.pending == 0:
            self._last = time.perf_counter()  # idle until now: the gap would measure that
        self.pending += 1
        self._metrics.pending.inc()
        return Slot(self)

    def leave(self) -> None:
        """Frees a slot."""
        self.pending -= 1
        self._metrics.pending.dec()

    def begin(self) -> None:
        """Counts an accepted image."""
        self._metrics.accepted.inc()

    def end(self, *, answered: bool) -> None:
        """Counts the end of an image; an answer updates the throughput."""
        self._metrics.answered.inc()
        if answered:
            now = time.perf_counter()
            gap, self._last = now - self._last, now
            self._gap += SMOOTHING * (gap - self._gap)  # starts at 0: one slow image at first rejects nobody

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, retry_after=max(1, math.ceil(min(self.expected_wait, self.deadline))))


class Slot:
    """A slot, held by one image or by several in turn."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        admission.begin()

    def __enter__(self) -> Self:
        return self

    def next(self) -> None:
        """Passes the slot from an answered image to the next one of the same request."""
        self._admission.end(answered=True)
        self._admission.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._admission.end(answered=kind is None)
        self._admission.leave()
