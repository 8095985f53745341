"""Listeners: what a training writes and shows while it runs."""

from __future__ import annotations

from lipsformer.system.console import is_quiet

from .curves import Curves
from .listener import Listener
from .metrics_file import MetricsFile
from .progress import ProgressDisplay
from .tensorboard import TensorBoard

__all__ = ["Listener", "make_listeners"]


def make_listeners(*, files: bool = True, tensorboard: bool = False) -> list[Listener]:
    """The listeners of `lipsformer train`. With `files` they write metrics.jsonl and curves.png.

    Raises:
        InputError: if TensorBoard is asked for and not installed.
    """
    display = [] if is_quiet() else [ProgressDisplay()]
    written = [MetricsFile(), Curves()] if files else []
    return [*written, *([TensorBoard()] if tensorboard else []), *display]
