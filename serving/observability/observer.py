"""One observer for each worker: metrics, logs, traces and monitoring of every request that ends."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Self

from .background import Background
from .logs import LogFormat, access_fields, configure_logs
from .metrics import Metrics, open_metrics
from .monitoring import Monitor
from .record import RequestRecord
from .tracing import Tracer, open_tracer

__all__ = ["Observer"]

logger = logging.getLogger("lipsformer.serving.access")

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
CLOSE_SECONDS = 2.0


class Observer:
    """Tells of requests; `start` makes it.

    Attributes:
        metrics: what the application counts while a request goes on.
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
        monitoring: Path | None = None,
    ) -> Self:
        """Sets up logging, metrics, tracing (by the OTEL_ variables) and monitoring of this process.

        Args:
            log_format: of all lines on stderr.
            access_log: whether each request gets a line.
            monitoring: folder for what was predicted; None means that it is not kept.

        Raises:
            InputError: if tracing is asked for and its exporter is not installed, or the folder cannot be written.
        """
        return cls(
            metrics=open_metrics(),
            lines=configure_logs(log_format),
            access_log=access_log,
            tracer=open_tracer(os.environ),
            monitor=Monitor(monitoring) if monitoring is not None else None,
        )

    def observe(self, record: RequestRecord) -> None:
        """Tells of a request that has ended, with its method as one of a few; never waits for anything."""
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
        """Writes out what waits to be written, for a few seconds at most; the log last, where others may complain."""
        if self._tracer is not None:
            self._tracer.close()
        if self._monitor is not None:
            self._monitor.close()
        self._lines.close(CLOSE_SECONDS)
