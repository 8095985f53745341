"""The numbers that TensorBoard shows, read back with its own reader."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsformer.system.errors import InputError
from lipsformer.train.listeners.listener import RunInfo
from lipsformer.train.listeners.tensorboard import TensorBoard
from lipsformer.train.metrics import StepMetrics
from lipsformer.train.recipe import load_recipe
from lipsformer.train.run_folder import RunFolder
from tests.train.test_progress import epoch_metrics


def step_metrics(step: int) -> StepMetrics:
    """A step with a loss of its number; odd ones are skipped."""
    return StepMetrics(epoch=1, step=step, images=8, loss_sum=float("nan") if step % 2 else 8.0 * step, correct=4.0,
                       grad_norm=1.0, learning_rate=0.1, data_seconds=0.5, seconds=2.0, skipped=step // 2)  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@contextmanager
def writing(folder: Path, start: int, end: int) -> Iterator[TensorBoard]:
    """A listener that has received the steps of a run resumed after step `start`, up to step `end`."""
    pytest.importorskip("tensorboard")
    board = TensorBoard()
    run = RunInfo(
        title="", folder=RunFolder(folder), recipe=load_recipe("default"), steps_per_epoch=30, step=start, history=()
    )
    board.on_begin(run)
    for step in range(start + 1, end + 1):
        board.on_step(step_metrics(step))
    yield board
    board.on_end()


def test_means_of_twenty_steps_and_the_numbers_of_an_epoch(tmp_path: Path) -> None:
    with writing(tmp_path, 0, 30) as board:
        epoch = epoch_metrics(1, 0.25, train_loss=None, val_loss=float("nan"))
        board.on_epoch(dataclasses.replace(epoch, step=30))
    found = scalars(tmp_path)
    assert found["steps/loss"] == [(20, pytest.approx(11.0))]  # of the even steps alone
    assert found["steps/top1"] == [(20, 0.5)]
    assert found["steps/images_per_second"] == [(20, 4.0)]
    assert found["steps/data_wait"] == [(20, 0.25)]
    assert found["steps/skipped"] == [(20, 10.0)]
    assert found["val/top1"] == [(30, 0.25)]
    assert found["epochs/epoch"] == [(30, 1.0)]
    assert not {"train/loss", "train/loss_curve", "val/loss"} & found.keys()  # not numbers


def test_a_resumed_training_draws_one_line(tmp_path: Path) -> None:
    with writing(tmp_path, 0, 80):
        pass
    assert [step for step, _ in scalars(tmp_path)["steps/top1"]] == [20, 40, 60, 80]
    with writing(tmp_path, 40, 60):
        pass
    assert [step for step, _ in scalars(tmp_path)["steps/top1"]] == [20, 40, 60]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'lipsformer\[tensorboard\]'"):
        TensorBoard()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(InputError, match="tensorboard: cannot be written"), writing(tmp_path, 0, 0):
        pass
