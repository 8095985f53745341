"""What operators see of the server: metrics, logs, traces and the monitoring of predictions."""

from __future__ import annotations

from .metrics import Metrics, open_metrics
from .observer import Observer
from .record import Classified, RequestRecord, Stage

__all__ = ["Classified", "Metrics", "Observer", "RequestRecord", "Stage", "open_metrics"]
