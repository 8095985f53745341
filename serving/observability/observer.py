"""One observer per worker: reports every request that ends to metrics, the log, traces and a monitor."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Protocol, Self

from lipsformer.serving.settings import LogFormat

from .background import Background
from .logs import access_fields, configure_logs
from .metrics import Metrics, open_metrics
from .record import RequestRecord
from .tracing import Tracer, open_tracer

__all__ = ["Monitor", "Observer"]

logger = logging.getLogger("lipsformer.serving.access")

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
CLOSE_SECONDS = 2.0


class Monitor(Protocol):
    """Keeps predictions for later analysis."""

    def put(self, record: RequestRecord) -> None:
        """Queues a record that carries predictions; returns at once."""

    def close(self) -> None:
        """Writes the queued records."""


class Observer:
    """Reports requests; `start` creates it.

    Attributes:
        metrics: updated by the application while a request is in progress.
        keeps_predictions: whether records must carry their predictions, for monitoring.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        lines: Background[str],
        access_log: bool,
        tracer: Tracer | None,
        monitor: Monitor | None,
    ) -> None:
        self.metrics = metrics
        self.keeps_predictions = monitor is not None
        self._lines = lines
        self._access_log = access_log
        self._tracer = tracer
        self._monitor = monitor

    @classmethod
    def start(
        cls,
        *,
        log_format: LogFormat = "text",
        access_log: bool = True,
        open_monitor: Callable[[], Monitor] | None = None,
    ) -> Self:
        """Sets up logging, metrics and tracing (configured by the OTEL_ variables) for this process.

        Args:
            log_format: of all lines on stderr.
            access_log: whether each request gets a line.
            open_monitor: opens what keeps the predictions, once the log works; None discards them.

        Raises:
            InputError: if tracing is configured and its exporter is not installed.
        """
        return cls(
            metrics=open_metrics(),
            lines=configure_logs(log_format),
            access_log=access_log,
            tracer=open_tracer(os.environ),
            monitor=None if open_monitor is None else open_monitor(),
        )

    def observe(self, record: RequestRecord) -> None:
        """Reports a request that has ended; never blocks. Unknown methods are reported as `_OTHER`."""
        if record.method not in METHODS:
            record.method = "_OTHER"
        self.metrics.observe(record)
        if self._access_log:
            level = logging.INFO if record.status < 500 else logging.WARNING
            logger.log(
                level, "%s %s %d", record.method, record.route, record.status, extra={"fields": access_fields(record)}
            )
        if self._tracer is not None:
            self._tracer.put(record)
        if self._monitor is not None and record.predictions:
            self._monitor.put(record)

    def close(self) -> None:
        """Flushes everything, for a few seconds at most; the log last, because the others may still write to it."""
        if self._tracer is not None:
            self._tracer.close()
        if self._monitor is not None:
            self._monitor.close()
        self._lines.close(CLOSE_SECONDS)
