"""What a tracker receives, and what happens if it fails."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lipsformer.system.errors import InputError
from lipsformer.train.listeners.listener import RunInfo
from lipsformer.train.metrics import StepMetrics
from lipsformer.train.recipe import load_recipe
from lipsformer.train.run_folder import RunFolder
from lipsformer.train.trackers import make_tracking
from lipsformer.train.trackers.tensorboard import TensorBoard
from lipsformer.train.trackers.tracker import Tracker
from lipsformer.train.trackers.tracking import PAUSE, PENDING, Tracking
from tests.train.test_progress import Clock, epoch_metrics

STEPS = 30  # of an epoch


def step_metrics(step: int) -> StepMetrics:
    """A step with a loss of its number; odd ones are skipped."""
    return StepMetrics(epoch=1, step=step, images=8, loss_sum=float("nan") if step % 2 else 8.0 * step, correct=4.0,
                       grad_norm=1.0, learning_rate=0.1, data_seconds=0.5, seconds=2.0, skipped=step // 2)  # fmt: skip


class Notebook(Tracker):
    """Keeps rows in memory. Like a library of others, it warns and prints, and it fails while it is `broken`."""

    name = "notebook"
    where = "in memory"

    def __init__(self, rows: Mapping[int, Mapping[str, float]] | None = None) -> None:
        self.rows = dict(rows or {})
        self.calls: list[str] = []
        self.broken = False

    def _call(self, what: str) -> None:
        sys.stdout.write("chatter\n")
        if self.broken:
            raise OSError("no space\nleft")
        self.calls.append(what)

    def open(self, run: RunInfo) -> int:
        self._call("open")
        return max(self.rows, default=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call(f"log {step}")
        assert step not in self.rows
        self.rows[step] = metrics

    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        self._call(f"files {checkpoint.name}")

    def close(self, *, finished: bool) -> None:
        self._call(f"close {finished}")


def run_info(folder: Path, said: list[str], step: int = 0, history: Sequence[Any] = ()) -> RunInfo:
    return RunInfo(title="title", run_id="id", folder=RunFolder(folder), recipe=load_recipe("default"),
                   steps_per_epoch=STEPS, step=step, history=history, say=said.append)  # fmt: skip


def epoch(number: int, **changes: Any) -> Any:
    return dataclasses.replace(epoch_metrics(number, 0.25, **changes), step=number * STEPS)


def follow(tracking: Tracking, run: RunInfo, end: int) -> None:
    """The calls of a training from its step to step `end`, with the ends of its epochs."""
    tracking.on_begin(run)
    for step in range(run.step + 1, end + 1):
        tracking.on_step(step_metrics(step))
        if step % STEPS == 0:
            tracking.on_epoch(epoch(step // STEPS))


def test_means_of_twenty_steps_and_the_numbers_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    tracking = Tracking(notebook := Notebook())
    follow(tracking, run_info(tmp_path, said), 29)
    tracking.on_epoch(epoch(1, train_loss=None, val_loss=float("nan")))
    tracking.on_report(finished=True)
    assert list(notebook.rows) == [20, 30]
    assert notebook.rows[20] == {"steps/loss": 11.0, "steps/top1": 0.5, "steps/learning_rate": 0.1, "steps/skipped": 10,
                                 "steps/images_per_second": 4.0, "steps/data_wait": 0.25}  # fmt: skip
    assert notebook.rows[30]["val/top1"] == 0.25
    assert notebook.rows[30]["epochs/epoch"] == 1
    assert not {"train/loss", "train/loss_curve", "val/loss"} & notebook.rows[30].keys()  # not numbers
    assert notebook.calls == ["open", "log 20", "log 30", "files best.safetensors", "close True"]
    assert said == ["notebook: in memory"]
    assert capsys.readouterr() == ("", "")


def test_a_step_that_ends_an_epoch_comes_with_the_epoch(tmp_path: Path) -> None:
    tracking = Tracking(notebook := Notebook())
    follow(tracking, run_info(tmp_path, []), 59)
    tracking.on_step(step_metrics(60))
    assert list(notebook.rows) == [20, 30, 40]
    tracking.on_epoch(epoch(2))
    assert notebook.rows[60].keys() >= {"steps/loss", "val/top1"}


def test_stopped_in_the_last_step_of_an_epoch_the_epoch_follows_later(tmp_path: Path) -> None:
    """Otherwise the record's last step would be that of the epoch, and the epoch would count as written."""
    tracking = Tracking(notebook := Notebook())
    follow(tracking, run_info(tmp_path, []), 59)
    tracking.on_step(step_metrics(60))
    tracking.on_report(finished=False)
    assert notebook.calls[-2:] == ["log 40", "close False"]
    again = Tracking(notebook)
    again.on_begin(run_info(tmp_path, [], step=60, history=[epoch(1)]))
    again.on_epoch(epoch(2))
    assert "val/top1" in notebook.rows[60]


def test_a_resumed_run_adds_what_the_record_lacks(tmp_path: Path) -> None:
    notebook = Notebook({20: {}, 30: {}, 40: {}})
    follow(Tracking(notebook), run_info(tmp_path, [], step=30, history=[epoch(1)]), 90)
    assert notebook.calls == ["open", "log 60", "log 80", "log 90"]
    late = Notebook()  # a tracker that the run began without
    follow(Tracking(late), run_info(tmp_path, [], step=60, history=[epoch(1), epoch(2)]), 80)
    assert list(late.rows) == [30, 60, 80]


def test_a_failure_is_said_once_and_made_up_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    tracking = Tracking(notebook := Notebook(), clock := Clock())
    notebook.broken = True
    follow(tracking, run_info(tmp_path, said), 70)
    assert said == [
        "notebook: cannot be written (OSError: no space left); the training continues, and what is missing is "
        "written when that works again"
    ]
    assert tracking.failures == 1  # the next attempt comes after a pause
    clock.now += PAUSE
    tracking.on_step(step_metrics(71))
    tracking.on_step(dataclasses.replace(step_metrics(80)))
    assert tracking.failures == 2
    notebook.broken = False
    clock.now += PAUSE
    tracking.on_epoch(epoch(3))
    assert list(notebook.rows) == [20, 30, 40, 60, 80, 90]
    tracking.on_report(finished=True)
    assert len(said) == 1
    assert capsys.readouterr() == ("", "")


def test_a_record_that_stays_incomplete_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = Tracking(notebook := Notebook())
    notebook.broken = True
    follow(tracking, run_info(tmp_path, []), 70)
    tracking.on_report(finished=True)
    assert capsys.readouterr().err == (
        "notebook: the record is incomplete after 2 failures: it lacks 4 points and files\n"
    )


def test_points_that_wait_are_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = Tracking(notebook := Notebook(), Clock())
    notebook.broken = True
    tracking.on_begin(run_info(tmp_path, []))
    for number in range(1, PENDING + 3):
        tracking.on_epoch(epoch(number))
    notebook.broken = False
    tracking.on_report(finished=False)
    assert len(notebook.rows) == PENDING
    assert "after 1 failures: it lacks 2 points\n" in capsys.readouterr().err


def scalars(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_draws_one_line_of_a_resumed_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for start, end in ((0, 40), (0, 80), (40, 60)):  # the first ended before any state, the second after that of 40
        tracking = Tracking(TensorBoard())
        follow(tracking, run_info(tmp_path, [], step=start, history=[epoch(1)] if start else ()), end)
        tracking.on_report(finished=False)
    assert scalars(tmp_path)["steps/top1"] == [20, 40, 60]
    assert scalars(tmp_path)["val/top1"] == [30, 60]


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").touch()
    said: list[str] = []
    follow(Tracking(TensorBoard()), run_info(tmp_path, said), 30)
    assert len(said) == 1
    assert "tensorboard: cannot be written (" in said[0]


@pytest.mark.parametrize(
    ("tracker", "module"),
    [
        ("tensorboard", "tensorboard"),
        ("mlflow", "mlflow"),
        ("mlflow", "sqlalchemy"),
        ("wandb", "wandb"),
        ("trackio", "trackio"),
    ],
)
def test_without_the_library_it_says_what_to_install(
    tracker: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^--track {tracker}: .*pip install 'lipsformer\[{tracker}\]'"):
        make_tracking([tracker])


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(InputError, match="--track mlfow: unknown tracker; did you mean 'mlflow'"):
        make_tracking(["mlfow"])
