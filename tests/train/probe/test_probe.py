"""`--recipe probe`: an ordinary run folder and checkpoint, for any number of processes, stopped or not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lipsformer import InputError, load_checkpoint, load_predictor
from lipsformer.datasets import DatasetOptions, open_dataset
from lipsformer.evaluation.evaluate import evaluate
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import LipsFormerError, StoppedError
from lipsformer.train import load_recipe, run_lr_range_test, run_training
from lipsformer.train.augment.pipeline import Augmentation
from lipsformer.train.data.sampler import EpochSampler
from lipsformer.train.distributed import DistributedContext
from lipsformer.train.initial_weights import StartingPoint
from lipsformer.train.loop import TrainContext
from lipsformer.train.probe import probe as probe_module
from lipsformer.train.probe.features import Views, compute_features
from lipsformer.train.signals import StopRequest
from lipsformer.train.stability.grid import measure_stability
from tests.support.nursery import Nursery
from tests.support.tiny_training import CLASSES, TINY, blank_plots, one_thread

# What a probe takes of the tiny training, and few views in a batch, so that there are several batches.
TINY_PROBE = (*(text for text in TINY if text.startswith(("model.", "workers"))), "batch_size=10", "crops=2")
FILES = {"best.safetensors", "classes.md", "confusion.png", "curves.png", "last.safetensors", "metrics.jsonl"}
FILES |= {"mistakes.png", "recipe.toml", "state-000000000.safetensors", "state-000000001.safetensors"}


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished probe."""
    output = tmp_path_factory.mktemp("run") / "run"
    probe(photos, output)
    return output


def probe(data: Path, output: Path, *overrides: str, **options: Any) -> Path:
    with one_thread(), blank_plots():
        return run_training(data, output=output, recipe="probe", overrides=(*TINY_PROBE, *overrides), **options)


def path_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_probe_leaves_an_ordinary_run_folder(run: Path, photos: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    assert (run / "best.safetensors").read_bytes() == (run / "last.safetensors").read_bytes()
    checkpoint = load_checkpoint(run / "best.safetensors")
    assert checkpoint.classes == tuple(sorted(CLASSES))
    assert checkpoint.metrics["split"] == "val"
    found = evaluate(load_predictor(run / "best.safetensors"), open_dataset(photos).validation).predictions
    assert found.top1 == checkpoint.metrics["top1"]
    assert found.mean_loss == pytest.approx(checkpoint.metrics["loss"], rel=1e-4)


def test_the_head_alone_changes_and_separates_the_training_images(run: Path, photos: Path) -> None:
    trained = load_checkpoint(run / "best.safetensors").model
    again = load_checkpoint(probe(photos, run.parent / "weak", "hflip=0.0")).model
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) != name.startswith("head."), name
    assert path_of(run)[-1]["train_top1"] == pytest.approx(1.0)


def test_the_path_says_what_it_chose_and_on_what(run: Path) -> None:
    points = path_of(run)
    chosen = [point for point in points if point["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["held_out_loss"] == min(point["held_out_loss"] for point in points)
    assert {point["held_out"] for point in points} == {"val"}


def test_a_run_with_the_same_seed_gives_the_same_bytes(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = probe(photos, tmp_path / "run", "workers=2")
    assert "lipsformer_swin_nano has no trained weights" in capsys.readouterr().err
    assert best.read_bytes() == (run / "best.safetensors").read_bytes()


def test_test_photos_never_choose_the_penalty(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train", tmp_path / "data" / "train")
    shutil.copytree(photos / "val", tmp_path / "data" / "test")
    probe(tmp_path / "data", tmp_path / "run")
    assert {point["held_out"] for point in path_of(tmp_path / "run")} == {"4 folds of train"}
    before = [point["held_out_loss"] for point in path_of(tmp_path / "run")]
    names = sorted((tmp_path / "data" / "test").iterdir())
    (names[0] / "0.jpg").rename(tmp_path / "moved.jpg")  # swap two labels
    (names[1] / "0.jpg").rename(names[0] / "0.jpg")
    (tmp_path / "moved.jpg").rename(names[1] / "0.jpg")
    probe(tmp_path / "data", tmp_path / "other")
    assert [point["held_out_loss"] for point in path_of(tmp_path / "other")] == before


def test_one_image_of_each_class_is_enough(photos: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        shutil.copytree(photos / "val" / name, tmp_path / "data" / "train" / name)
        shutil.copytree(photos / "val" / name, tmp_path / "data" / "test" / name)
    best = probe(tmp_path / "data", tmp_path / "run")
    assert load_checkpoint(best).metrics["top1"] == 1.0
    assert path_of(tmp_path / "run") == []


@pytest.mark.parametrize("options", [{"fold": "2/4"}, {"group": r"(\d)\.jpg"}])
def test_folds_and_groups_are_held_out(options: dict[str, str], photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train", tmp_path / "data")
    best = probe(tmp_path / "data", tmp_path / "run", options=DatasetOptions(**options))
    assert "of train" in path_of(tmp_path / "run")[0]["held_out"]
    assert load_checkpoint(best).metrics | options == load_checkpoint(best).metrics


def test_unreadable_images_are_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    damaged = [data / "train" / CLASSES[0] / "1.jpg", data / "val" / CLASSES[1] / "0.jpg"]
    for path in damaged:
        path.write_bytes(b"no image")
    with pytest.raises(LipsFormerError, match=r"val: no image can be read of 1 of 3 classes"):
        probe(data, tmp_path / "run")
    listed = (tmp_path / "run" / "unreadable.txt").read_text()
    assert all(str(path) in listed for path in damaged)
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").metrics["images"] == 2
    for path in (data / "train").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the images to train on can be read"):
        probe(data, tmp_path / "other")


def test_fine_tuning_continues_from_the_head(run: Path, photos: Path) -> None:
    recipe = load_recipe("finetune", model=str(run / "best.safetensors"))
    start = StartingPoint.resolve(recipe.model)
    trained = load_checkpoint(run / "best.safetensors").model
    network = start.build_model(open_dataset(photos).classes)
    assert torch.equal(network.head.weight, trained.head.weight)
    assert network.config.drop_path == load_recipe("finetune").model["drop_path"] == 0.2


def test_a_probe_that_was_killed_or_stopped_gives_the_same_bytes(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(probe_module.Probe, "_set_head", mock.Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            probe(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "signal", signal.SIGTERM)
        with pytest.raises(StoppedError) as stopped:
            probe(photos, tmp_path / "run")
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "best.safetensors").exists()
    best = probe(photos, tmp_path / "run")
    assert best.read_bytes() == (run / "best.safetensors").read_bytes()
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_finished_probe_is_not_repeated(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe_module, "compute_features", None)
    probe(photos, run)
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["epochs=3", "mixup=0.2"], r'a probe \(method = "probe"\) does not use epochs, mixup; omit them'),
        (["learning_rate=0.1"], "does not use learning_rate; omit it"),
        (["precision=bfloat16"], "a probe computes in full precision"),
        (["method=knn"], "recipe: method"),
        (["method=train"], "crops=2: only a probe"),
    ],
)
def test_settings_without_effect_are_refused(overrides: list[str], problem: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        probe(photos, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_commands_about_learning_rates_refuse_a_probe(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a probe has no learning rate"):
        run_lr_range_test(photos, output=tmp_path / "a", recipe="probe", overrides=TINY_PROBE)
    with pytest.raises(InputError, match="a probe has no learning rate"):
        measure_stability(
            photos, output=tmp_path / "b", recipe="probe", learning_rates="1e-3", seeds=1, epochs=None, overrides=(),
            jobs=1, device="cpu",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alone(DistributedContext):
    """One of several processes, whose sums stay its share."""

    def all_reduce(self, values: Tensor) -> Tensor:
        return values


def test_features_are_the_same_for_any_number_of_processes(photos: Path) -> None:
    recipe, dataset = load_recipe("probe", TINY_PROBE), open_dataset(photos)
    preprocessing = Preprocessing(image_size=32)
    model = StartingPoint.resolve(recipe.model).build_model(dataset.classes).eval()
    views = Views(dataset.train, recipe, preprocessing, crops=recipe.crops)

    def share(rank: int, world_size: int) -> Tensor:
        context = TrainContext(
            recipe=recipe,
            distributed=Alone(rank=rank, world_size=world_size, device=torch.device("cpu")),
            sampler=EpochSampler(dataset.train.labels, recipe),
            normalize=PixelNormalize(preprocessing),
            augmentation=Augmentation(
                rand_augment=0, mixup=0, cutmix=0, random_erasing=0, label_smoothing=0, classes=3
            ),
        )
        features = compute_features(views, model, context, lambda batch: None)
        assert (features.values.abs().sum(dim=(1, 2)) > 0).equal(features.readable)
        return features.values

    with one_thread():
        whole = share(0, 1)
        assert torch.equal(share(0, 3) + share(1, 3) + share(2, 3), whole)
    assert whole.shape[1] == 4
    flipped = views[0].pixels
    assert flipped is not None
    assert (flipped[0] == flipped[1][:, ::-1]).all()


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(run: Path, photos: Path, tmp_path: Path, nursery: Nursery) -> None:
    words = ["train", photos, "--recipe", "probe", "--output", tmp_path / "run"]
    words += [word for override in TINY_PROBE for word in ("--set", override)]
    nursery.start(words, tmp_path / "log", processes=2)
    assert nursery.wait(180) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
