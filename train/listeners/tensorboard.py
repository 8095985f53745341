"""A training's figures for TensorBoard, where they are asked for; the package is optional."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lipsformer.system.errors import InputError

from .pace import Progress

__all__ = ["TensorBoard"]

INTERVAL = 20  # steps between two points


class TensorBoard:
    """Writes event files into `folder` while it is open: `steps/...` each 20 steps, `train/...`, `val/...` per epoch.

    Args:
        folder: made if it is not there.
        start_step: steps that were done before. What an earlier run wrote of later steps is purged, so that a resumed
            training draws one line.

    Raises:
        InputError: if the package tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "the package tensorboard is not installed; pip install 'lipsformer[tensorboard]', or train without it"
            ) from None
        try:
            # A first step of 1, so that a training that is begun anew in the same folder purges all.
            self._writer = SummaryWriter(folder, purge_step=start_step + 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); check it, or train without it") from None
        self._steps: list[Progress] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def step(self, step: int, progress: Progress) -> None:
        """Takes in a step, the `step`-th of the training counted from 1; writes means each 20 steps."""
        self._steps.append(progress)
        if step % INTERVAL:
            return
        taken, self._steps = self._steps, []
        seconds = sum(each.seconds for each in taken)
        self._write("steps/loss", _mean([each.loss for each in taken]), step)
        self._write("steps/top1", _mean([each.top1 for each in taken]), step)
        self._write("steps/learning_rate", progress.learning_rate, step)
        self._write("steps/skipped", progress.skipped, step)
        if seconds > 0:
            self._write("steps/images_per_second", sum(each.images for each in taken) / seconds, step)
            self._write("steps/data_wait", sum(each.wait_seconds for each in taken) / seconds, step)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the numbers of an epoch's record (a line of metrics.jsonl) at its step, and all of it to disk."""
        for name, value in record.items():
            part, _, rest = name.partition("_")
            self._write(f"{part}/{rest}" if part in ("train", "val") else f"epochs/{name}", value, record["step"])
        self._writer.flush()

    def _write(self, tag: str, value: object, step: int) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            self._writer.add_scalar(tag, value, step)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
