"""Observability: metrics, logs, traces and monitored predictions."""

from __future__ import annotations

from .drift import DriftMonitor
from .metrics import Metrics, open_metrics
from .observer import Monitor, Observer
from .record import OTHER, Classified, RequestRecord, Span

__all__ = [
    "OTHER",
    "Classified",
    "DriftMonitor",
    "Metrics",
    "Monitor",
    "Observer",
    "RequestRecord",
    "Span",
    "open_metrics",
]
