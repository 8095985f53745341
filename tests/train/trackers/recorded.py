"""A program: a training that all trackers record is killed and resumes, then their libraries read the records back.

`python -m tests.train.trackers.recorded FOLDER` prints them as one JSON document. It is a separate process, because
the libraries read their settings when they are imported, and start threads.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from lipsformer.train.metrics import StepMetrics
from lipsformer.train.trackers import TRACKERS
from lipsformer.train.training import Training
from tests.support.nursery import PRELOADED
from tests.support.tiny_training import make_photos, train_tiny

KILLED_AT = 22  # between the point at step 20 and the state of step 24; the state before is that of step 12
Row = tuple[int, Mapping[str, Any]]


def train(folder: Path) -> None:
    train_tiny(folder / "photos", folder / "run", "batch_size=1", epochs=2, plots=True, track=tuple(TRACKERS))


def train_and_die(folder: Path) -> None:
    original = Training._after_step

    def after_step(self: Training, batch: Any, step: StepMetrics) -> None:
        original(self, batch, step)
        if step.step == KILLED_AT:
            time.sleep(1.5)  # wandb and trackio write half a second later
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(Training, "_after_step", after_step):
        train(folder)


def in_child(work: Callable[[Path], None], folder: Path) -> int:
    """Runs `work` in a process and returns how it ended."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work(folder)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def points(rows: Iterable[Row]) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each metric, in the order of the rows."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, row in rows:
        for name, value in row.items():
            if name.startswith(("steps/", "train/", "val/", "epochs/")):
                found.setdefault(name, []).append((step, value))
    return found


def plots(names: Iterable[str]) -> list[str]:
    return sorted(name.removeprefix("plots/") for name in names if name.startswith("plots/"))


def read_tensorboard(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    recipe = events.Tensors("recipe/text_summary")
    return {
        "points": points((e.step, {tag: e.value}) for tag in tags["scalars"] for e in events.Scalars(tag)),
        "recipe": [line for text in recipe for line in text.tensor_proto.string_val[0].decode().split("\n    ")],
        "plots": plots(tags["images"]),
    }


def read_mlflow(folder: Path) -> dict[str, Any]:
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("lipsformer").experiment_id])
    number = run.info.run_id
    checkpoint = client.download_artifacts(number, "checkpoint/best.safetensors", str(folder))
    return {
        "points": points(
            (p.step, {name: p.value}) for name in run.data.metrics for p in client.get_metric_history(number, name)
        ),
        "recipe": [f"{name} = {value}" for name, value in run.data.params.items()],
        "plots": plots(file.path.removesuffix(".png") for file in client.list_artifacts(number, "plots")),
        "status": run.info.status,
        "same checkpoint": is_best(folder, Path(checkpoint)),
    }


def read_wandb(folder: Path) -> dict[str, Any]:
    from lipsformer.train.trackers.wandb import read_records

    logs = sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for log in logs for record in read_records(log)]
    runs = [record.run for record in records if record.HasField("run")]
    rows = [
        (history.step.num, {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item})
        for history in (record.history for record in records if record.HasField("history"))
    ]
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    files = [entry.local_path for artifact in artifacts for entry in artifact.manifest.contents]
    return {
        "points": points(rows),
        "recipe": [f"{item.key} = {item.value_json}" for item in runs[0].config.update],
        "plots": plots(name for _, row in rows for name in row),
        "same checkpoint": [is_best(folder, Path(file)) for file in files] == [True],
        "logs": len(logs),
        "runs": len({run.run_id for run in runs}),
    }


def read_trackio(folder: Path) -> dict[str, Any]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("lipsformer")
    rows = [(row["step"], row) for row in SQLiteStorage.get_logs("lipsformer", run.name)]
    found = {
        "points": points(rows),
        "recipe": [f"{name} = {value}" for name, value in run.config.items()],
        "plots": plots(name for _, row in rows for name in row),
    }
    reader = trackio.init("lipsformer", name="reader", embed=False)
    downloaded = reader.use_artifact(f"checkpoint-{run.name}:latest").download(str(folder / "downloaded"))
    return {**found, "same checkpoint": is_best(folder, Path(downloaded, "best.safetensors"))}


def is_best(folder: Path, checkpoint: Path) -> bool:
    return checkpoint.read_bytes() == (folder / "run" / "best.safetensors").read_bytes()


def main(folder: Path) -> None:
    os.environ.update(
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", TRACKIO_DIR=str(folder / "trackio"), WANDB_MODE="offline"
    )
    os.chdir(folder)
    make_photos(folder / "photos")
    for tracker in TRACKERS.values():
        tracker()  # sets the variables of its library, and imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in (*PRELOADED, "mlflow.store.tracking.sqlalchemy_store"):
            importlib.import_module(module)  # once for all processes
    assert in_child(train_and_die, folder) == -signal.SIGKILL
    assert sorted((folder / "run").glob("state-*"))[-1].name == "state-000000012.safetensors"
    assert in_child(train, folder) == 0
    document, sys.stdout = sys.stdout, sys.stderr  # trackio prints
    readers = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb, "trackio": read_trackio}
    found = {name: read(folder) for name, read in readers.items()}
    json.dump({**found, "metrics": (folder / "run" / "metrics.jsonl").read_text()}, document)
    document.flush()
    os._exit(0)  # what the libraries do at exit takes seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
