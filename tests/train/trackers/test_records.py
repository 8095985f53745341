"""Each tracker's record of a training that was killed and resumed, read back with its own library."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "trackio"  # where the Makefile installs it, since it wants an older Pillow
ROOT = Path(__file__).parents[3]
LIBRARIES = ("tensorboard", "mlflow", "sqlalchemy", "wandb")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing or not FOLDER.is_dir():
        pytest.skip(f"needs the libraries of all trackers; missing: {missing}, or Trackio in {FOLDER}")
    paths = [str(ROOT), str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.trackers.recorded", str(tmp_path_factory.mktemp("records"))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "cannot be written" not in result.stderr
    assert "incomplete" not in result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_the_record_has_everything_once(records: dict[str, Any], tracker: str) -> None:
    record = records[tracker]
    epochs = [json.loads(line) for line in records["metrics"].splitlines()]
    points = record["points"]
    for name, key in (("train/loss", "train_loss"), ("val/top1", "val_top1"), ("epochs/epoch", "epoch")):
        assert points[name] == [[epoch["step"], pytest.approx(epoch[key], abs=1e-6)] for epoch in epochs]
    steps = {name: [step for step, _ in values] for name, values in points.items()}
    assert all(found == ([20] if name.startswith("steps/") else [12, 24]) for name, found in steps.items()), steps
    assert {"steps/loss", "steps/learning_rate", "epochs/seconds", "val/loss"} <= points.keys()
    assert record["plots"] == ["confusion", "curves", "mistakes"]
    assert [line for line in record["recipe"] if line.startswith("ema_decay")] == ["ema_decay = 0.9"]


@pytest.mark.slow
def test_the_checkpoint_is_an_artifact(records: dict[str, Any]) -> None:
    assert [records[name]["same checkpoint"] for name in ("mlflow", "wandb", "trackio")] == [True] * 3
    assert records["mlflow"]["status"] == "FINISHED"
    assert (records["wandb"]["logs"], records["wandb"]["runs"]) == (2, 1)
