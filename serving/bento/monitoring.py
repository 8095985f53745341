"""Monitoring of predictions by BentoML: one row per image, to look at drift and quality later.

The image is never stored, nor who sent it.
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

from lipsformer.serving.observability import Classified, RequestRecord
from lipsformer.serving.observability.background import Background
from lipsformer.system.errors import InputError

__all__ = ["BentoMonitor", "create_monitoring_folder"]

logger = logging.getLogger("lipsformer.serving")

NAME = "predictions"
WAITING_RECORDS = 2048
CLOSE_SECONDS = 2.0
SHA256_DIGITS = 16


class BentoMonitor:
    """Writes predictions with `bentoml.monitor`, in a background thread.

    BentoML's configuration selects the kind of monitor. The default one writes JSON lines below `folder`, to one file
    per worker and day.

    Raises:
        InputError: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from bentoml._internal.configuration.containers import BentoMLContainer

        create_monitoring_folder(folder)
        BentoMLContainer.config.monitoring.options.log_path.set(str(folder))
        self._failures = 0
        self._records = Background(self._write_all, name="monitoring", capacity=WAITING_RECORDS)

    def put(self, record: RequestRecord) -> None:
        """Queues a record that carries predictions; returns at once."""
        self._records.put(record)

    def close(self) -> None:
        """Writes the queued records, for a few seconds at most."""
        self._records.close(CLOSE_SECONDS)

    def _write_all(self, records: Sequence[RequestRecord]) -> None:
        for record in records:
            for classified in record.predictions:
                try:
                    contextvars.copy_context().run(_write, record, classified)
                except Exception:  # noqa: BLE001 - monitors raise types that we do not know
                    self._report_failure()
                for handler in logging.getLogger("bentoml_monitor_data").handlers:
                    handler.handleError = self._report_failure  # type: ignore[assignment, method-assign]

    def _report_failure(self, _: logging.LogRecord | None = None) -> None:
        """Logs the exception that is being handled."""
        error = sys.exception()
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th: a full disk must not fill the log
            logger.warning("predictions could not be monitored, %d so far: %s", self._failures, error)


def create_monitoring_folder(folder: Path) -> None:
    """Creates the folder for predictions, unless it exists.

    Raises:
        InputError: if it cannot be created or written, or BentoML cannot use its name.
    """
    if "'" in str(folder) or not str(folder).isprintable():
        raise InputError(f"LIPSFORMER_MONITORING={str(folder)!r}: BentoML cannot use this name; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"LIPSFORMER_MONITORING={folder}: cannot be created ({error.strerror}); choose another folder"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"LIPSFORMER_MONITORING={folder}: not writable; change its permissions")


def _write(record: RequestRecord, classified: Classified) -> None:
    """Writes one image's row. To be run in a copied context: BentoML leaves marks there if anything fails."""
    import bentoml
    from bentoml._internal.context import trace_context

    trace_context.request_id = record.request_id  # type: ignore[assignment]  # BentoML adds it as a column
    classification = classified.classification
    best = classification.predictions[0]
    with bentoml.monitor(NAME) as monitor:
        now = datetime.datetime.now(datetime.UTC)
        monitor.log(now.isoformat(timespec="milliseconds"), "time", "feature", "categorical")
        monitor.log((record.sha256 or "")[:SHA256_DIGITS], "sha256", "feature", "categorical")
        monitor.log(record.precision, "precision", "feature", "categorical")
        monitor.log(classified.bytes, "bytes", "feature", "numerical")
        monitor.log(best.label, "label", "prediction", "categorical")
        monitor.log(best.score, "score", "prediction", "numerical")
        accepted = {None: "", True: "yes", False: "no"}[classification.accepted]
        monitor.log(accepted, "accepted", "prediction", "categorical")
        top: Any = [{"label": one.label, "score": one.score} for one in classification.predictions]
        monitor.log(top, "top", "prediction", "categorical")
