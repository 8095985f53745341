"""Who is let in: a bounded number of images at work, and none whose answer would come too late."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from lipsformer.serving.observability import Metrics

__all__ = ["Admission", "Overloaded", "Slot"]

SMOOTHING = 0.05  # weight of the newest gap between two answers: a mean over the last twenty or so


class Overloaded(Exception):  # noqa: N818 - a state of the server that is answered, not an error of its code
    """No more is taken now; `retry_after` says in how many seconds it is worth asking again."""

    def __init__(self, message: str, *, retry_after: int = 1, reason: str = "overloaded") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class Admission:
    """Places for images between their acceptance and their answer.

    Args:
        max_pending: how many places there are.
        deadline: seconds within which an answer is worth something.
        metrics: counts every image accepted, answered and pending.
    """

    def __init__(self, *, max_pending: int, deadline: float, metrics: Metrics) -> None:
        self.max_pending = max_pending
        self.deadline = deadline
        self.pending = 0
        self._metrics = metrics
        self._pace = 0.0  # seconds from one answer to the next, while there is work
        self._last = 0.0

    @property
    def expected_wait(self) -> float:
        """Seconds until an image that is let in now would be answered, at the present pace."""
        return self.pending * self._pace

    def check(self) -> None:
        """Raises what `enter` would, before more is done for a request."""
        if self.pending >= self.max_pending:
            raise self._overloaded(f"{self.pending} images are pending already")
        if self.expected_wait > self.deadline:
            raise self._overloaded(f"an answer would take {self.expected_wait:.0f} seconds now")

    def enter(self) -> Slot:
        """A place for one image; to leave its context gives it back.

        Raises:
            Overloaded: if every place is taken, or the answer would come too late.
        """
        self.check()
        if self.pending == 0:
            self._last = time.perf_counter()  # idle until now: the gap would measure that
        self.pending += 1
        self._metrics.pending.inc()
        return Slot(self)

    def leave(self) -> None:
        """Takes a place back."""
        self.pending -= 1
        self._metrics.pending.dec()

    def begin(self) -> None:
        """Counts an image that is accepted."""
        self._metrics.accepted.inc()

    def end(self, *, answered: bool) -> None:
        """Counts its end; an answer tells the pace."""
        self._metrics.answered.inc()
        if answered:
            now = time.perf_counter()
            gap, self._last = now - self._last, now
            self._pace += SMOOTHING * (gap - self._pace)  # from 0 on: one slow image at the start shuts nobody out

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, retry_after=max(1, math.ceil(min(self.expected_wait, self.deadline))))


class Slot:
    """A place that one image holds, or several one after the other."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        admission.begin()

    def __enter__(self) -> Self:
        return self

    def next(self) -> None:
        """Passes the place on from an image that was answered to the next one of the same request."""
        self._admission.end(answered=True)
        self._admission.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._admission.end(answered=kind is None)
        self._admission.leave()
