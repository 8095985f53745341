"""Runs in Trackio: in its local database, or where its environment variables point."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lipsformer.train.listeners.listener import RunInfo

from .tracker import PROJECT, Tracker

__all__ = ["Trackio"]


class Trackio(Tracker):
    """Writes a run of the project `lipsformer`, or of that in $TRACKIO_PROJECT.

    Trackio finds a run by its name, so the name ends in the run's id.
    """

    name = "trackio"
    module = "trackio"

    def open(self, run: RunInfo) -> int:
        """Opens the run."""
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._name = f"{run.name}-{run.run_id[:8]}"
        self._record = self.library.init(
            project=project, name=self._name, config=dict(run.parameters), resume="allow", embed=False
        )
        self.where = f"run {self._name}; trackio show --project {project}"
        return int(self._record._next_step) - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step. Trackio's own thread writes them, half a second later at most."""
        self._record.log(dict(metrics), step=step)

    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        """Adds the plots as images, and the checkpoint as a version of an artifact."""
        self._record.log({f"plots/{plot.stem}": self.library.Image(str(plot)) for plot in plots})
        self._record.log_artifact(str(checkpoint), name=f"checkpoint-{self._name}", type="model")

    def close(self, *, finished: bool) -> None:
        """Ends the run, once everything is written."""
        self._record.finish()
