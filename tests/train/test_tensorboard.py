"""The figures that TensorBoard shows, read back with its own reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lipsformer.system.errors import InputError
from lipsformer.train.listeners.live import Progress
from lipsformer.train.listeners.tensorboard import TensorBoard


def progress(step: int) -> Progress:
    return Progress(epoch=0, step_in_epoch=step, loss=None if step % 2 else float(step), top1=0.5, learning_rate=0.1,
                    images=8, wait_seconds=0.5, seconds=2.0, skipped=step // 2)  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def record(step: int, **more: object) -> dict[str, object]:
    return {"epoch": step // 30, "step": step, "train_loss": None, "val_top1": 0.25, "train_loss_curve": [1.0], **more}


def write(folder: Path, start: int, end: int) -> None:
    with TensorBoard(folder, start) as board:
        for step in range(start + 1, end + 1):
            board.step(step, progress(step))


def test_means_each_twenty_steps_and_an_epochs_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path / "events") as board:
        for step in range(1, 31):
            board.step(step, progress(step))
        board.epoch(record(30, val_loss=float("nan")))
    found = scalars(tmp_path / "events")
    assert found["steps/loss"] == [(20, pytest.approx(11.0))]  # the even steps' alone
    assert found["steps/images_per_second"] == [(20, 4.0)]
    assert found["steps/data_wait"] == [(20, 0.25)]
    assert found["steps/skipped"] == [(20, 10.0)]
    assert found["val/top1"] == [(30, 0.25)]
    assert found["epochs/epoch"] == [(30, 1.0)]
    assert not {"train/loss", "train/loss_curve", "val/loss"} & found.keys()  # not numbers


def test_a_resumed_training_draws_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, 0, 80)
    assert [step for step, _ in scalars(tmp_path)["steps/top1"]] == [20, 40, 60, 80]
    write(tmp_path, 40, 60)
    assert [step for step, _ in scalars(tmp_path)["steps/top1"]] == [20, 40, 60]


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'lipsformer\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "events").touch()
    with pytest.raises(InputError, match="events: cannot be written"):
        TensorBoard(tmp_path / "events")
