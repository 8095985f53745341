"""One observer for each worker: metrics, logs, traces and monitoring of every request that ends."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal, Self

from .metrics import Metrics
from .record import Record

__all__ = ["Observer"]


class Observer:
    """Tells of requests; `start` makes it.

    Attributes:
        metrics: what the application counts while a request goes on.
        keeps_predictions: whether records must carry their predictions, for monitoring.
    """

    def __init__(self, *, metrics: Metrics, keeps_predictions: bool) -> None:
        self.metrics = metrics
        self.keeps_predictions = keeps_predictions

    @classmethod
    def start(
        cls,
        *,
        routes: Collection[str],
        log_format: Literal["text", "json"] = "text",
        access_log: bool = True,
        monitoring: Path | None = None,
    ) -> Self:
        """Sets up logging, metrics, tracing (by the OTEL_ variables) and monitoring of this process.

        Args:
            routes: the application's paths; every other one is told as "other".
            log_format: of all lines on stderr.
            access_log: whether each request gets a line.
            monitoring: folder for what was predicted; None means that it is not kept.

        Raises:
            InputError: if tracing is asked for and its exporter is not installed, or the folder cannot be written.
        """
        raise NotImplementedError

    def observe(self, record: Record) -> None:
        """Tells of a request that has ended; never blocks and never raises for what a client sent."""
        raise NotImplementedError

    def close(self) -> None:
        """Writes out what waits to be written, for a few seconds at most."""
        raise NotImplementedError
