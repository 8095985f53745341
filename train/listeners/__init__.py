"""Listeners: what a training writes and shows while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from lipsformer.system.console import is_quiet

from .curves import Curves
from .listener import Listener
from .metrics_file import MetricsFile
from .progress import ProgressDisplay

__all__ = ["Listener", "make_listeners"]


def make_listeners(*, files: bool = True, track: Sequence[str] = ()) -> list[Listener]:
    """The listeners of `lipsformer train`. With `files` they write metrics.jsonl and curves.png.

    `track` names trackers that record the run, too.

    Raises:
        InputError: if a tracker is unknown or not installed.
    """
    display = [] if is_quiet() else [ProgressDisplay()]
    written = [MetricsFile(), Curves()] if files else []
    if not track:
        return [*written, *display]
    from lipsformer.train.trackers import make_tracking

    return [*written, *make_tracking(track), *display]
