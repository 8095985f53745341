"""Listeners: what a training writes and shows while it runs."""

from __future__ import annotations

from .curves import Curves
from .listener import Listener
from .metrics_file import MetricsFile
from .progress import ProgressDisplay
from .tensorboard import TensorBoard

__all__ = ["Listener", "make_listeners"]


def make_listeners(*, tensorboard: bool = False, quiet: bool = False) -> list[Listener]:
    """The listeners of `lipsformer train`.

    Raises:
        InputError: if TensorBoard is asked for and not installed.
    """
    display = [] if quiet else [ProgressDisplay()]
    return [MetricsFile(), Curves(), *([TensorBoard()] if tensorboard else []), *display]
