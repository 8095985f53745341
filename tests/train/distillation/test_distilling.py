"""A training with a teacher: what it learns, what is recorded, and that it resumes bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lipsformer import InputError, load_checkpoint, load_predictor
from lipsformer.datasets import DatasetOptions
from lipsformer.train import load_recipe, run_lr_range_test
from lipsformer.train.data.dataset import Batch
from lipsformer.train.distillation.distiller import Distiller
from lipsformer.train.distillation.student import Student
from lipsformer.train.listeners.curves import plot_curves
from lipsformer.train.metrics import EpochMetrics, EpochSums, StepMetrics
from lipsformer.train.training import Training
from tests.support.command import Run
from tests.support.models.teachers import CLASSES_TABLE, write_classes, write_onnx
from tests.support.nursery import Nursery
from tests.support.tiny_training import CLASSES, TINY, assert_same, contents, states, train_tiny
from tests.support.trained import Trained

MIXED = ("mixup=0.8", "cutmix=1.0", "rand_augment=9", "random_erasing=0.25")


def distill(photos: Path, output: Path, teacher: Path | str, *overrides: str, **options: Any) -> Path:
    return train_tiny(photos, output, *overrides, teacher=str(teacher), **{"epochs": 2, **options})


def foreign(folder: Path) -> list[str]:
    """A foreign teacher in `folder`: its path and the settings that describe it."""
    folder.mkdir()
    names = write_classes(folder / "names.txt", *CLASSES)
    table = CLASSES_TABLE | {"classes": str(names)}
    write_onnx(folder / "t.onnx")
    return [f"distillation.preprocessing.{name}={json.dumps(value)}" for name, value in table.items()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the following training stop, as by Ctrl-C, after `step` steps."""
    after_step = Training._after_step

    def interrupted(training: Training, batch: Batch, metrics: StepMetrics) -> None:
        if metrics.step == step:
            raise KeyboardInterrupt
        after_step(training, batch, metrics)

    monkeypatch.setattr(Training, "_after_step", interrupted)


@pytest.mark.parametrize(
    ("source", "kind"),
    [("checkpoint", "logits"), ("checkpoint", "features"), ("graph", "features"), ("foreign", "logits")],
)
def test_it_resumes_bit_for_bit(
    photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: str
) -> None:
    overrides = [*MIXED, f"distillation.kind={kind}", "batch_size=4", "grad_accum_steps=2"]
    if source == "foreign":
        overrides += foreign(tmp_path / "teacher")
    graph = load_predictor(trained.bundle).file
    teacher = {"checkpoint": trained.checkpoint, "graph": graph, "foreign": tmp_path / "teacher" / "t.onnx"}[source]
    distill(photos, tmp_path / "whole", teacher, *overrides)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)  # in the middle of the second epoch
        with pytest.raises(KeyboardInterrupt):
            distill(photos, tmp_path / "run", teacher, *overrides, "save_every=2")
    assert states(tmp_path / "run")[-1].name == "state-000000004.safetensors"
    train_tiny(photos, tmp_path / "run", "batch_size=4", epochs=None)  # the run's own recipe has the teacher
    assert_same(tmp_path / "run", tmp_path / "whole")
    tensors, records = contents(tmp_path / "whole")
    assert records[-1]["train_distillation_loss"] > 0
    assert any("projection." in name for name in tensors) == (kind == "features")
    assert not any("projection" in name for name in tensors if not name.startswith("state/"))


@pytest.mark.slow
def test_killed_it_resumes_bit_for_bit(photos: Path, trained: Trained, tmp_path: Path, nursery: Nursery) -> None:
    settings = (*MIXED, "distillation.kind=features", "save_every=1")
    distill(photos, tmp_path / "whole", trained.checkpoint, *settings, epochs=4)
    words = [f"--set={setting}" for setting in (*TINY, *settings)]
    words += [f"--teacher={trained.checkpoint}", "--epochs=4", f"--output={tmp_path / 'run'}"]
    process = nursery.start(["train", photos, *words], tmp_path / "log")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert nursery.wait(60) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / "classes.md").exists()  # it had not finished
    distill(photos, tmp_path / "run", trained.checkpoint, *settings, epochs=4)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_another_teacher_gives_another_student(photos: Path, trained: Trained, tmp_path: Path) -> None:
    distill(photos, tmp_path / "run", trained.checkpoint)
    train_tiny(photos, tmp_path / "alone", epochs=2)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", tmp_path / "alone")
    assert "train_distillation_loss" not in contents(tmp_path / "alone")[1][0]


def test_with_the_whole_weight_on_the_teacher_labels_do_not_matter(
    photos: Path, trained: Trained, tmp_path: Path
) -> None:
    for name, smoothing in (("a", 0.0), ("b", 0.5)):
        settings = (f"label_smoothing={smoothing}", "distillation.weight=1.0")
        distill(photos, tmp_path / name, trained.checkpoint, *settings, epochs=1)
    (first, _), (second, _) = (contents(tmp_path / name) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("last/"))


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_the_student_comes_closer_to_its_teacher(photos: Path, trained: Trained, tmp_path: Path, kind: str) -> None:
    settings = (f"distillation.kind={kind}", "learning_rate=3e-3", "crop_scale=[0.9, 1.0]", "model.drop_path=0.0")
    distill(photos, tmp_path / "run", trained.checkpoint, *settings, epochs=5)
    losses = [record["train_distillation_loss"] for record in contents(tmp_path / "run")[1]]
    assert losses[-1] < 0.8 * losses[0]


def test_the_teacher_sees_what_the_student_sees(
    photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Tensor] = []
    learned: list[Tensor] = []
    targets, forward = Distiller.targets, Student.forward

    def see(distiller: Distiller, images: Tensor, precision: contextlib.AbstractContextManager[object]) -> Tensor:
        taught.append(distiller.view(images).clone())
        return targets(distiller, images, precision)

    def learn(student: Student, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        learned.append(images.clone())
        return forward(student, images, noise)

    monkeypatch.setattr(Distiller, "targets", see)
    monkeypatch.setattr(Student, "forward", learn)
    distill(photos, tmp_path / "run", trained.checkpoint, *MIXED, "batch_size=4", "grad_accum_steps=2", epochs=1)
    assert len(taught) == len(learned) > 1
    assert all(torch.equal(seen, own) for seen, own in zip(taught, learned, strict=True))


def test_the_teacher_is_recorded_and_a_changed_one_refused(photos: Path, trained: Trained, tmp_path: Path) -> None:
    teacher = shutil.copy(trained.checkpoint, tmp_path / "teacher.safetensors")
    distill(photos, tmp_path / "run", teacher)
    settings = load_recipe(str(tmp_path / "run" / "recipe.toml")).distillation
    assert settings is not None
    assert len(settings.sha256 or "") == 64
    moved = shutil.copy(teacher, tmp_path / "moved.safetensors")
    distill(photos, tmp_path / "run", moved)  # the same teacher under another name
    content = load_checkpoint(teacher)
    train_tiny(photos, tmp_path / "other", "model.image_size=64", epochs=1)
    shutil.copy(tmp_path / "other" / "last.safetensors", teacher)
    assert content.classes != load_checkpoint(teacher).classes
    for options in ({"teacher": str(teacher)}, {}, {"recipe": str(tmp_path / "run" / "recipe.toml")}):
        with pytest.raises(InputError, match=r"teacher\.safetensors: changed since the training began \(SHA-256"):
            train_tiny(photos, tmp_path / "run", epochs=2, **options)
    with pytest.raises(InputError, match=r"another recipe \(distillation was unset|made with another recipe"):
        train_tiny(photos, tmp_path / "run", recipe="default", epochs=2)


def test_a_teacher_in_the_output_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    best = train_tiny(photos, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match=r"best\.safetensors: lies in the --output folder"):
        distill(photos, tmp_path / "run", best)


def test_missing_classes_and_files_leave_no_folder(photos: Path, trained: Trained, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(photos / split / "Orange", tmp_path / "data" / split / "tangerine")
        shutil.copytree(photos / split / "Orange", tmp_path / "data" / split / "Orange")
    with pytest.raises(InputError, match=r"it does not know 1 of 2 classes \('tangerine'\)"):
        distill(tmp_path / "data", tmp_path / "run", trained.checkpoint)
    with pytest.raises(InputError, match="no such file or folder"):
        distill(photos, tmp_path / "run", tmp_path / "none.safetensors")
    assert not (tmp_path / "run").exists()
    distill(tmp_path / "data", tmp_path / "run", trained.checkpoint, "distillation.kind=features", epochs=1)


def test_outputs_that_are_not_finite_end_the_training_with_their_step(
    photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, calls = Distiller.targets, []

    def failing(*arguments: Any) -> Tensor:
        calls.append(1)
        found = targets(*arguments)
        return torch.full_like(found, float("inf")) if len(calls) > steps else found

    monkeypatch.setattr(Distiller, "targets", failing)
    for steps, kept in ((1, False), (4, True)):
        calls.clear()
        with pytest.raises(InputError, match=rf"^step {steps + 1}: outputs of the teacher .* are not finite"):
            distill(photos, tmp_path / "run", trained.checkpoint)
        assert (tmp_path / "run" / "last.safetensors").exists() is kept  # finished epochs stay
        assert bool(states(tmp_path / "run")) is kept


def test_a_fold_has_a_teacher(photos: Path, trained: Trained, tmp_path: Path) -> None:
    best = distill(photos / "train", tmp_path / "run", trained.checkpoint, epochs=1, options=DatasetOptions(fold="1/2"))
    assert load_checkpoint(best).metrics["fold"] == "1/2"


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_bfloat16_has_a_teacher(photos: Path, trained: Trained, tmp_path: Path, kind: str) -> None:
    settings = ("precision=bfloat16", f"distillation.kind={kind}", "batch_size=12")
    distill(photos, tmp_path / "run", trained.checkpoint, *settings, epochs=1)
    distill(photos, tmp_path / "full", trained.checkpoint, *settings[1:], epochs=1)
    (found,), (full,) = (contents(tmp_path / name)[1] for name in ("run", "full"))
    assert found["train_distillation_loss"] != full["train_distillation_loss"]
    assert found["train_distillation_loss"] == pytest.approx(full["train_distillation_loss"], rel=0.05)


def test_the_range_test_includes_the_teacher(photos: Path, trained: Trained, tmp_path: Path) -> None:
    first = []
    for teacher in (None, str(trained.checkpoint)):
        overrides = (*TINY, "batch_size=12")
        found = run_lr_range_test(photos, output=tmp_path / "r", overrides=overrides, epochs=10, teacher=teacher)
        first.append(found["losses"][0])
    assert first[0] != first[1]


def test_states_from_before_distillation_still_load() -> None:
    sums = EpochSums(4).to_dict()
    del sums["distillation"]
    assert EpochSums.from_dict(sums).means()["train_distillation_loss"] is None


def test_curves_show_the_distillation_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    labels: list[object] = []
    plot = Axes.plot

    def noted(axes: Axes, *values: Any, **options: Any) -> Any:
        labels.append(options.get("label"))
        return plot(axes, *values, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    values = {"step": 1, "learning_rate": 1e-3, "train_loss": 1.0, "train_top1": 0.5, "train_loss_curve": [1.0],
              "skipped_steps": 0, "images_per_second": 1.0, "data_wait": 0.0, "val_loss": 1.0, "val_top1": 0.5,
              "val_top5": 1.0, "val_images": 1, "seconds": 1.0}  # fmt: skip
    for loss, shown in ((None, False), (0.5, True)):
        labels.clear()
        history = [EpochMetrics(epoch=1, train_distillation_loss=loss, **values)]  # type: ignore[arg-type]
        plot_curves(tmp_path / "curves.png", history, "title")
        assert ("distillation (training)" in labels) is shown


@pytest.mark.slow
def test_two_processes_distill_as_one(photos: Path, trained: Trained, tmp_path: Path, nursery: Nursery) -> None:
    settings, log = (*MIXED, "batch_size=12", "precision=float64", "distillation.kind=features"), tmp_path / "log.txt"
    words = [f"--set={setting}" for setting in (*TINY, *settings, "grad_accum_steps=3")]
    words += [f"--teacher={trained.checkpoint}", "--epochs=3", f"--output={tmp_path / 'two'}"]
    nursery.start(["train", photos, *words], log, processes=2)
    assert nursery.wait(180) == 0, log.read_text()
    assert log.read_text().count("teacher ") == 1
    distill(photos, tmp_path / "one", trained.checkpoint, *settings, epochs=3)
    (two, records), (one, others) = (contents(tmp_path / name) for name in ("two", "one"))
    for record, other in zip(records, others, strict=True):
        for name in record.keys() - {"train_loss_curve"}:
            assert record[name] == pytest.approx(other[name], rel=1e-9), name
    torch.testing.assert_close(two["state/projection.weight"], one["state/projection.weight"], rtol=1e-7, atol=1e-10)


def test_the_command_takes_a_teacher(photos: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("train", photos, "--teacher", "none.onnx", "--output", tmp_path / "run")
    assert code == 2
    assert "--teacher none.onnx: no such file or folder" in err
