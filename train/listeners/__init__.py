"""Listeners: what a training writes and shows while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from lipsformer.system.console import is_quiet

from .curves import Curves
from .listener import Listener
from .metrics_file import MetricsFile
from .progress import ProgressDisplay

__all__ = ["Listener", "make_listeners"]


def make_listeners(*, files: bool = True, tracking: Sequence[Listener] = ()) -> list[Listener]:
    """The listeners of `lipsformer train`. With `files` they write metrics.jsonl and curves.png.

    `tracking` are those of experiment trackers. The display comes last, so that it starts when their records are open.
    """
    display = [] if is_quiet() else [ProgressDisplay()]
    written = [MetricsFile(), Curves()] if files else []
    return [*written, *tracking, *display]
