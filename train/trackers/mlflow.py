"""Runs in MLflow: its store is the one that MLflow is configured for, by default `mlflow.db` in the current folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lipsformer.system.mlflow import import_mlflow
from lipsformer.train.listeners.listener import RunInfo

from .tracker import PROJECT, Tracker

__all__ = ["MLflow"]

TAG = "lipsformer.run"  # by which a resumed training finds its run


class MLflow(Tracker):
    """Writes a run of the experiment `lipsformer`, or of that in $MLFLOW_EXPERIMENT_NAME."""

    name = "mlflow"

    def __init__(self) -> None:
        self.library = import_mlflow("--track mlflow")

    def open(self, run: RunInfo) -> int:
        """Finds the run by its tag, or creates it."""
        self._client = self.library.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.where = f"run {run.name} of experiment {experiment} in {self.library.get_tracking_uri()}"
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([number], f"tags.`{TAG}` = '{run.run_id}'", max_results=1)
        record = runs[0] if runs else self._client.create_run(number, run_name=run.name, tags={TAG: run.run_id})
        self._id = record.info.run_id
        if not record.data.params:
            parameter = self.library.entities.Param
            self._client.log_batch(self._id, params=[parameter(*item) for item in run.parameters.items()])
        self._client.update_run(self._id, status="RUNNING")
        histories = (self._client.get_metric_history(self._id, name) for name in record.data.metrics)
        return max((point.step for history in histories for point in history), default=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step in one transaction."""
        now, metric = int(time.time() * 1000), self.library.entities.Metric
        self._client.log_batch(self._id, [metric(name, value, now, step) for name, value in metrics.items()])

    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        """Uploads artifacts into the folders `plots` and `checkpoint`."""
        for plot in plots:
            self._client.log_artifact(self._id, str(plot), "plots")
        self._client.log_artifact(self._id, str(checkpoint), "checkpoint")

    def close(self, *, finished: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
