"""What operators see of the server: metrics, logs, traces and the monitoring of predictions."""

from __future__ import annotations

from .metrics import Metrics, open_metrics
from .observer import Observer
from .record import Classified, Record, Stage

__all__ = ["Classified", "Metrics", "Observer", "Record", "Stage", "open_metrics"]
