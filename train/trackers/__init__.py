"""Experiment trackers: TensorBoard, MLflow, Weights & Biases and Trackio, for `lipsformer train --track NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lipsformer.system.errors import InputError, suggest

from .mlflow import MLflow
from .tensorboard import TensorBoard
from .tracker import Tracker
from .tracking import Tracking
from .trackio import Trackio
from .wandb import WandB

__all__ = ["TRACKERS", "make_tracking"]

TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    tracker.name: tracker for tracker in (TensorBoard, MLflow, WandB, Trackio)
}


def make_tracking(names: Sequence[str]) -> list[Tracking]:
    """A listener for each tracker that is named.

    Raises:
        InputError: if a name is unknown, or its library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track {name}: unknown tracker; {suggest(name, TRACKERS)}")
    return [Tracking(TRACKERS[name]()) for name in dict.fromkeys(names)]
