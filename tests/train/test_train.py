"""A training learns, stops and resumes, bit-identical to one that was never stopped."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from lipsformer import LipsFormerError, Preprocessing, load_checkpoint, load_predictor
from lipsformer.datasets import open_dataset, open_labeled
from lipsformer.evaluation.evaluate import evaluate
from lipsformer.system import console
from lipsformer.train import load_recipe, loop
from lipsformer.train import run as run_module
from lipsformer.train import training as training_module
from lipsformer.train.data.dataset import TrainingImages
from lipsformer.train.listeners.listener import Listener, RunInfo
from lipsformer.train.listeners.metrics_file import MetricsFile
from lipsformer.train.metrics import EpochMetrics, StepMetrics
from lipsformer.train.optim.schedule import learning_rate
from tests.support.tiny_training import CLASSES, assert_same, contents, make_photos, states, train_tiny


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(photos, output, plots=True)
    return output


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Makes the following training stop, as by Ctrl-C, before it validates the epoch after `epochs`."""
    validate, calls = training_module.validate, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(training_module, "validate", interrupted)


def test_training_learns(photos: Path, tmp_path: Path) -> None:
    best = train_tiny(photos, tmp_path / "run", "learning_rate=3e-3", epochs=12)
    _, records = contents(tmp_path / "run")
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert [record["step"] for record in records] == list(range(3, 37, 3))
    assert records[-1]["train_loss"] < 0.8 * records[0]["train_loss"]
    assert records[-1]["val_top1"] == 1.0
    checkpoint = load_checkpoint(best)
    assert checkpoint.classes == CLASSES
    assert checkpoint.preprocessing.image_size == 32
    assert checkpoint.metrics["split"] == "val"
    assert checkpoint.metrics["top1"] == max(record["val_top1"] for record in records)


def test_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    tensors = {"best.safetensors", "last.safetensors", "state-000000009.safetensors", "state-000000012.safetensors"}
    assert names == tensors | {
        "metrics.jsonl",
        "recipe.toml",
        "curves.png",
        "confusion.png",
        "mistakes.png",
        "classes.md",
    }
    for name in ("curves.png", "confusion.png"):
        with Image.open(finished / name) as image:
            assert image.width > 500


def test_recipe_as_run_gives_the_same_run(photos: Path, finished: Path, tmp_path: Path) -> None:
    train_tiny(photos, tmp_path / "run", recipe=str(finished / "recipe.toml"), epochs=None)
    assert_same(finished, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_run_resumes_bit_for_bit(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(photos, output)
    assert (output / "curves.png").exists()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    train_tiny(photos, output, f"workers={workers}", epochs=None)
    assert_same(finished, output)


def test_resume_does_not_depend_on_where_the_dataset_lies(photos: Path, tmp_path: Path) -> None:
    train_tiny(photos, tmp_path / "run", epochs=1)
    moved = make_photos(tmp_path / "moved")
    assert train_tiny(moved, tmp_path / "run", epochs=None) == tmp_path / "run" / "best.safetensors"


def test_interrupted_in_the_first_epoch_it_resumes_too(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(photos, tmp_path / "run")
    assert states(tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()
    train_tiny(photos, tmp_path / "run")
    assert_same(finished, tmp_path / "run")


def test_resume_of_a_finished_run_returns_at_once(
    photos: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)[1]
    assert train_tiny(photos, finished) == finished / "best.safetensors"
    assert "finished already" in capsys.readouterr().err
    assert contents(finished)[1] == before


def test_resume_in_an_empty_folder_starts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train_tiny(photos, tmp_path / "run", epochs=1).is_file()


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Makes the training loss not a number in `steps`."""
    cross_entropy, calls = loop.F.cross_entropy, []

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = cross_entropy(*arguments, **options)
        if options.get("reduction") == "sum":
            calls.append(1)
            if len(calls) - 1 in steps:
                return loss * float("nan")
        return loss

    monkeypatch.setattr(loop.F, "cross_entropy", poisoned)


def test_step_with_nan_loss_is_skipped_and_counted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(3))  # the whole first epoch, which then has no training loss
    best = train_tiny(photos, tmp_path / "run", epochs=2)
    _, records = contents(tmp_path / "run")
    assert [record["skipped_steps"] for record in records] == [3, 0]
    assert records[0]["train_loss"] is None
    assert all(bool(p.isfinite().all()) for p in load_checkpoint(best).model.parameters())


def test_divergence_aborts_and_the_run_can_be_resumed(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_SKIPPED_IN_A_ROW", 2)
    with monkeypatch.context() as patch:
        poison(patch, range(7, 100))
        with pytest.raises(LipsFormerError, match=r"step 9: the loss or its gradient was not finite.*learning_rate"):
            train_tiny(photos, tmp_path / "run")
    train_tiny(photos, tmp_path / "run")
    assert_same(finished, tmp_path / "run")


def test_skipped_steps_are_counted_across_short_epochs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_SKIPPED_IN_A_ROW", 4)
    poison(monkeypatch, range(100))
    with pytest.raises(LipsFormerError, match="step 4: "):
        train_tiny(photos, tmp_path / "run")


def test_metrics_are_strict_json(finished: Path) -> None:
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_the_checkpoint_is_the_averaged_model_that_was_validated(photos: Path, finished: Path) -> None:
    tensors, records = contents(finished)
    checkpoint = load_checkpoint(finished / "last.safetensors")
    weights = checkpoint.model.state_dict()
    averaged = {name: tensors[f"state/average.module.{name}"] for name in weights}
    assert all(torch.equal(weights[name], averaged[name]) for name in weights)
    assert any(not torch.equal(weights[name], tensors[f"state/model.{name}"]) for name in weights)
    split = open_labeled(photos, checkpoint.classes, "val")
    found = evaluate(load_predictor(finished / "last.safetensors"), split)
    assert found.predictions.top1 == pytest.approx(records[-1]["val_top1"])
    assert checkpoint.metrics["top1"] == records[-1]["val_top1"]


def test_the_average_moves_away_from_the_initial_weights(one_epoch: dict[str, torch.Tensor], finished: Path) -> None:
    four, _ = contents(finished)
    assert not torch.equal(one_epoch["last/head.weight"], four["last/head.weight"])


def test_each_epoch_ends_at_the_rate_of_the_schedule(finished: Path) -> None:
    _, records = contents(finished)
    total = records[-1]["step"]
    for record in records:
        assert record["learning_rate"] == pytest.approx(learning_rate(record["step"] - 1, total, 1e-3))


@pytest.fixture(scope="module")
def one_epoch(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The tensors of a run of one epoch."""
    output = tmp_path_factory.mktemp("one") / "run"
    train_tiny(photos, output, epochs=1)
    return contents(output)[0]


@pytest.mark.parametrize("change", ["learning_rate=2e-3", "clip_grad=0.01", "label_smoothing=0.3", "weight_decay=5.0",
                                    "ema_decay=0.1", "hflip=0.0", "crop_scale=[0.9, 1.0]", "seed=1"])  # fmt: skip
def test_every_setting_reaches_the_result(
    change: str, photos: Path, tmp_path: Path, one_epoch: dict[str, torch.Tensor]
) -> None:
    train_tiny(photos, tmp_path / "run", change, epochs=1)
    changed, _ = contents(tmp_path / "run")
    assert not torch.equal(one_epoch["last/head.weight"], changed["last/head.weight"])


def test_a_flipped_crop_is_the_mirror_of_the_plain_one(photos: Path) -> None:
    split = open_dataset(photos).train
    preprocessing = Preprocessing(image_size=32)
    plain, flipped = (
        TrainingImages(split, load_recipe("default", {"hflip": flip}), preprocessing)[3, 0, 1] for flip in (0.0, 1.0)
    )
    assert plain.pixels is not None
    assert flipped.pixels is not None
    assert (plain.pixels[:, ::-1] == flipped.pixels).all()


def test_training_ends_early_without_a_better_epoch(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny(photos, tmp_path / "run", "learning_rate=1e-9", "patience=2", epochs=9)
    _, records = contents(tmp_path / "run")
    best = max(range(len(records)), key=lambda index: records[index]["val_top1"])
    assert len(records) == best + 3 < 9
    train_tiny(photos, tmp_path / "run", "learning_rate=1e-9", "patience=2", epochs=9)
    assert "finished already, after 3 epochs" in capsys.readouterr().err


def test_recomputed_activations_and_more_saving_change_no_bit(photos: Path, finished: Path, tmp_path: Path) -> None:
    train_tiny(photos, tmp_path / "run", "grad_checkpointing=true", "save_every=2")
    assert_same(finished, tmp_path / "run")


class Diary(Listener):
    """Notes the calls that it receives."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[StepMetrics] = []
        self.epochs: list[EpochMetrics] = []

    def on_begin(self, run: RunInfo) -> None:
        self.calls.append(f"begin at {run.step} after {len(run.history)} epochs of {run.title}")

    def on_step(self, step: StepMetrics) -> None:
        self.calls.append(f"step {step.step} of epoch {step.epoch}")
        self.steps.append(step)

    def on_validation(self, done: int, batches: int) -> None:
        self.calls.append(f"validation {done}/{batches}")

    def on_epoch(self, epoch: EpochMetrics) -> None:
        self.calls.append(f"epoch {epoch.epoch}")
        self.epochs.append(epoch)

    def on_end(self) -> None:
        self.calls.append("end")

    def on_report(self, *, finished: bool) -> None:
        self.calls.append(f"report, {'finished' if finished else 'to be resumed'}")


def test_a_listener_follows_a_training_and_its_resumption(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Diary(), Diary()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        patch.setattr(run_module, "make_listeners", lambda **_: [MetricsFile(), first])
        with pytest.raises(KeyboardInterrupt):
            train_tiny(photos, tmp_path / "run", epochs=2)
    monkeypatch.setattr(run_module, "make_listeners", lambda **_: [MetricsFile(), second])
    train_tiny(photos, tmp_path / "run", epochs=2)
    assert first.calls == [
        "begin at 0 after 0 epochs of lipsformer_swin_nano on photos",
        *(f"step {step} of epoch 1" for step in (1, 2, 3)),
        "validation 1/1",
        "epoch 1",
        *(f"step {step} of epoch 2" for step in (4, 5, 6)),
        "end",
        "report, to be resumed",
    ]
    assert second.calls == [
        "begin at 3 after 1 epochs of lipsformer_swin_nano on photos",
        *(f"step {step} of epoch 2" for step in (4, 5, 6)),
        "validation 1/1",
        "epoch 2",
        "end",
        "report, finished",
    ]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [epoch.to_dict() for epoch in first.epochs + second.epochs]
    losses = [step.loss for step in second.steps if step.loss is not None]
    assert [round(loss, 4) for loss in losses] == second.epochs[0].train_loss_curve
    assert all(0 <= step.data_seconds <= step.seconds and step.grad_norm > 0 for step in second.steps)


def test_quiet_prints_the_final_line_only(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.quiet():
        train_tiny(photos, tmp_path / "run", epochs=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r".*best\.safetensors and last\.safetensors are ready.*\n", err)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler imports what PyTorch itself deprecates
def test_compiled_it_learns_the_same(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's graphs of forward and backward; tests/model has one block's in C++, all would take minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    train_tiny(photos, tmp_path / "run", "compile=true")
    assert counters["stats"]["calls_captured"] > 100
    plain, compiled = contents(finished)[1], contents(tmp_path / "run")[1]
    for a, b in zip(plain, compiled, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3)
