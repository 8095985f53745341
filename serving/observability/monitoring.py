"""Monitoring of predictions by BentoML: what was answered, image by image, for drift and quality to be looked at later.

Never the image, and never who sent it.
"""

from __future__ import annotations

import contextvars
import datetime
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipsformer.system.errors import InputError

from .background import Background
from .record import Classified, RequestRecord

__all__ = ["Monitor"]

logger = logging.getLogger("lipsformer.serving")

NAME = "predictions"
WAITING_RECORDS = 2048
CLOSE_SECONDS = 2.0
SHA256_DIGITS = 16


class Monitor:
    """Writes predictions with `bentoml.monitor`, in a thread.

    BentoML's configuration chooses the kind of monitor; the default one writes JSON lines below `folder`, one file for
    each worker, and begins a new one each day.

    Raises:
        InputError: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from bentoml._internal.configuration.containers import BentoMLContainer

        if "'" in str(folder) or not str(folder).isprintable():
            raise InputError(f"LIPSFORMER_MONITORING={str(folder)!r}: BentoML cannot use this name")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"LIPSFORMER_MONITORING={folder}: cannot be made ({error.strerror})") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"LIPSFORMER_MONITORING={folder}: cannot be written")
        BentoMLContainer.config.monitoring.options.log_path.set(str(folder))
        self._failures = 0
        self._records = Background(self._write_all, name="monitoring", capacity=WAITING_RECORDS)

    def put(self, record: RequestRecord) -> None:
        """Takes a record that carries predictions; returns at once."""
        self._records.put(record)

    def close(self) -> None:
        """Writes what waits, for a few seconds at most."""
        self._records.close(CLOSE_SECONDS)

    def _write_all(self, records: Sequence[RequestRecord]) -> None:
        for record in records:
            for classified in record.predictions:
                try:
                    contextvars.copy_context().run(_write, record, classified)
                except Exception:  # noqa: BLE001 - monitors raise types of their own
                    self._tell_failure()
                for handler in logging.getLogger("bentoml_monitor_data").handlers:
                    handler.handleError = self._tell_failure  # type: ignore[assignment, method-assign]

    def _tell_failure(self, _: logging.LogRecord | None = None) -> None:
        """Tells of the exception that is being handled."""
        error = sys.exception()
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th: a full disk must not fill the log
            logger.warning("predictions could not be monitored, %d so far: %s", self._failures, error)


def _write(record: RequestRecord, classified: Classified) -> None:
    """One image. Runs in a context of its own: BentoML leaves marks there if anything fails."""
    import bentoml
    from bentoml._internal.context import trace_context

    trace_context.request_id = record.request_id  # type: ignore[assignment]  # it fills a column of its own from here
    best = classified.predictions[0]
    with bentoml.monitor(NAME) as monitor:
        now = datetime.datetime.now(datetime.UTC)
        monitor.log(now.isoformat(timespec="milliseconds"), "time", "feature", "categorical")
        monitor.log((record.sha256 or "")[:SHA256_DIGITS], "sha256", "feature", "categorical")
        monitor.log(record.precision, "precision", "feature", "categorical")
        monitor.log(classified.bytes, "bytes", "feature", "numerical")
        monitor.log(best.label, "label", "prediction", "categorical")
        monitor.log(best.score, "score", "prediction", "numerical")
        top: Any = [{"label": one.label, "score": one.score} for one in classified.predictions]
        monitor.log(top, "top", "prediction", "categorical")
