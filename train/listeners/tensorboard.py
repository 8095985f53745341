"""TensorBoard event files. The package tensorboard is optional."""

from __future__ import annotations

import math
from typing import Any

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require
from lipsformer.train.metrics import EpochMetrics, StepMetrics
from lipsformer.train.run_folder import EVENTS

from .listener import Listener, RunInfo

__all__ = ["TensorBoard"]

INTERVAL = 20  # steps between two points


class TensorBoard(Listener):
    """Writes `steps/...` every 20 steps, and `train/...`, `val/...` and `epochs/...` after each epoch.

    A resumed run removes the events of later steps that an earlier one wrote, so that TensorBoard shows one line.

    Raises:
        InputError: if the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        require("tensorboard", what="--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._open: Any = SummaryWriter
        self._steps: list[StepMetrics] = []

    def on_begin(self, run: RunInfo) -> None:
        """Opens the run's folder `tensorboard`.

        Raises:
            InputError: if it cannot be written.
        """
        folder = run.folder.path / EVENTS
        try:
            # One step later, because the events of step `run.step` itself stay. At step 0 it removes everything.
            self._writer = self._open(folder, purge_step=run.step + 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); check it, or train without it") from None

    def on_step(self, step: StepMetrics) -> None:
        """Writes means over the last steps every 20 steps."""
        self._steps.append(step)
        if step.step % INTERVAL:
            return
        steps, self._steps = self._steps, []
        seconds = sum(each.seconds for each in steps)
        self._write("steps/loss", _mean([each.loss for each in steps]), step.step)
        self._write("steps/top1", _mean([each.top1 for each in steps]), step.step)
        self._write("steps/learning_rate", step.learning_rate, step.step)
        self._write("steps/skipped", step.skipped, step.step)
        if seconds > 0:
            self._write("steps/images_per_second", sum(each.images for each in steps) / seconds, step.step)
            self._write("steps/data_wait", sum(each.data_seconds for each in steps) / seconds, step.step)

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Writes the epoch's numbers at its last step, and flushes everything to disk."""
        for name, value in epoch.to_dict().items():
            part, _, rest = name.partition("_")
            self._write(f"{part}/{rest}" if part in ("train", "val") else f"epochs/{name}", value, epoch.step)
        self._writer.flush()

    def on_end(self) -> None:
        """Closes the files."""
        self._writer.close()

    def _write(self, tag: str, value: object, step: int) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            self._writer.add_scalar(tag, value, step)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
