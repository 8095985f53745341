"""TensorBoard event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lipsformer.train.listeners.listener import RunInfo
from lipsformer.train.run_folder import EVENTS

from .tracker import Tracker

__all__ = ["TensorBoard"]


class TensorBoard(Tracker):
    """Writes events into the run's folder `tensorboard`: the recipe as text, metrics, and plots as images.

    TensorBoard has no artifacts: the checkpoint is in the run folder next to it. A resumed run removes the events of
    later steps that an earlier one wrote.
    """

    name = "tensorboard"
    module = "torch.utils.tensorboard"

    def open(self, run: RunInfo) -> int:
        """Opens the folder."""
        folder = run.folder.path / EVENTS
        has_events = any(folder.glob("events.*"))
        # Later than `run.step`, because the events of that step itself stay. At step 0 it removes everything.
        self._writer = self.library.SummaryWriter(folder, purge_step=run.step + 1 if run.step else 0)
        self._step = run.step
        self.where = f"tensorboard --logdir {folder}"
        if run.step and has_events:
            return run.step
        self._writer.add_text("recipe", "".join(f"    {line}\n" for line in run.recipe.to_toml().splitlines()), 0)
        return 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds scalars, and writes them to disk."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()
        self._step = step

    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        """Adds the plots as images."""
        for plot in plots:
            with Image.open(plot) as image:
                self._writer.add_image(
                    f"plots/{plot.stem}", np.asarray(image.convert("RGB")), self._step, dataformats="HWC"
                )

    def close(self, *, finished: bool) -> None:
        """Closes the event file."""
        self._writer.close()
