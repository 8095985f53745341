"""metrics.jsonl: one line of JSON for each epoch."""

from __future__ import annotations

import json

from lipsformer.train.metrics import EpochMetrics
from lipsformer.train.run_folder import METRICS

from .listener import Listener, RunInfo

__all__ = ["MetricsFile"]


class MetricsFile(Listener):
    """Rewrites metrics.jsonl after each epoch, so that it is complete at any moment and has no epoch twice."""

    def on_begin(self, run: RunInfo) -> None:
        """Remembers the lines of the epochs that are done."""
        self._folder = run.folder
        self._epochs = list(run.history)

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Adds a line."""
        self._epochs.append(epoch)
        self._folder.write(METRICS, "".join(json.dumps(done.to_dict()) + "\n" for done in self._epochs))
