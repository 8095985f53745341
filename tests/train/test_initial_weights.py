"""A training that starts from a checkpoint: its weights with a new head, slower or frozen early layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lipsformer import InputError, load_checkpoint
from lipsformer.checkpoints import header
from lipsformer.train import Recipe, run_training
from lipsformer.train.initial_weights import StartingPoint
from tests.support.tiny_training import contents, train_tiny
from tests.support.trained import write_checkpoint

FINE_TUNING = ("batch_size=6", "workers=0", "ema_decay=0.5")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More are slower for models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_weights_are_taken_but_for_a_head_of_other_classes(checkpoint: Path) -> None:
    before = load_checkpoint(checkpoint).model.state_dict()
    table = {"name": str(checkpoint), "drop_path": 0.3}
    start = StartingPoint.resolve(table)
    same = start.build_model(start.classes)
    assert same.config.drop_path == 0.3
    assert all(torch.equal(value, before[name]) for name, value in same.state_dict().items())
    other = start.build_model(("a", "b"))
    assert other.head.weight.shape == (2, before["head.weight"].shape[1])
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items() if "head" not in name)
    renamed = start.build_model([*start.classes[:-1], "z"])  # as many, but others
    assert not torch.equal(renamed.head.weight, before["head.weight"])


def test_what_does_not_fit_the_checkpoint_is_named(checkpoint: Path) -> None:
    name = str(checkpoint)
    with pytest.raises(InputError, match=r"its .* does not fit the changed model.embed_dim"):
        StartingPoint.resolve({"name": name, "embed_dim": 32}).build_model(("a", "b"))
    with pytest.raises(InputError, match="did you mean 'drop_path'"):
        StartingPoint.resolve({"name": name, "drop_pth": 0.3})
    with pytest.raises(InputError, match="no such checkpoint"):
        StartingPoint.resolve({"name": "none.safetensors"})


def test_a_checkpoint_of_stripes_can_be_tuned_at_another_size() -> None:
    table = {"name": "lipsformer_cifar10", "image_size": 64, "split_sizes": [2, 4, 8, 8]}
    start = StartingPoint.resolve(table)
    model = start.build_model(("a", "b"))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert start.preprocessing.image_size == 64
    assert start.preprocessing.mean == load_checkpoint("lipsformer_cifar10").preprocessing.mean


def test_a_training_opens_its_checkpoint_once_and_builds_one_recipe(
    photos: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, built = [], []
    safe_open, init = header.safe_open, Recipe.__init__

    def counted_open(path: Path, framework: str) -> Any:
        opened.append(path)
        return safe_open(path, framework=framework)

    def counted_init(self: Recipe, **values: Any) -> None:
        built.append(values["model"]["name"])
        init(self, **values)

    monkeypatch.setattr(header, "safe_open", counted_open)
    monkeypatch.setattr(Recipe, "__init__", counted_init)
    tune(photos, checkpoint, tmp_path / "run", "model.drop_path=0.1")
    assert opened == [checkpoint]
    assert built == [str(checkpoint)]


def tune(photos: Path, checkpoint: Path, output: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The weights (not their average) after two epochs from the checkpoint."""
    run_training(photos, output=output, model=str(checkpoint), epochs=2, overrides=(*FINE_TUNING, *overrides))
    tensors, _ = contents(output)
    return {name.removeprefix("state/model."): t for name, t in tensors.items() if name.startswith("state/model.")}


def test_frozen_stages_stay_and_the_rest_is_trained(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    before = load_checkpoint(checkpoint).model.state_dict()
    after = tune(photos, checkpoint, tmp_path / "run", "freeze=2")
    frozen = ("patch_embed.", "layers.0.", "layers.1.")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(frozen))
    moved = [name for name in before if "head" not in name and not torch.equal(before[name], after[name])]
    assert {name.split(".")[1] for name in moved if name.startswith("layers")} == {"2", "3"}
    tune(photos, checkpoint, tmp_path / "run", "freeze=2")  # the same command: finished already
    # and the weights that validation sees are the trained ones
    assert not torch.equal(
        load_checkpoint(tmp_path / "run" / "last.safetensors").model.head.weight, after["head.weight"]
    )


def test_early_layers_move_less_where_the_rate_decays(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    before = load_checkpoint(checkpoint).model.state_dict()

    def moved(name: str, after: dict[str, torch.Tensor]) -> float:
        return float((after[name] - before[name]).norm() / before[name].norm())

    plain = tune(photos, checkpoint, tmp_path / "plain")
    decayed = tune(photos, checkpoint, tmp_path / "decayed", "layer_decay=0.1")
    first, last = "patch_embed.proj.weight", "norm.weight"
    assert moved(first, decayed) < 0.01 * moved(first, plain)
    assert moved(last, decayed) > 0.3 * moved(last, plain)


@pytest.mark.parametrize("optimizer", ["muon", "adamw2"])
def test_a_fine_tuning_resumes(photos: Path, checkpoint: Path, tmp_path: Path, optimizer: str) -> None:
    whole = tune(photos, checkpoint, tmp_path / "run", f"optimizer={optimizer}")
    newest = sorted((tmp_path / "run").glob("state-*"))[-1]
    newest.unlink()
    again = tune(photos, checkpoint, tmp_path / "run", f"optimizer={optimizer}")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_checkpoint_of_another_training_of_ours(photos: Path, tmp_path: Path) -> None:
    last = train_tiny(photos, tmp_path / "first", epochs=1).with_name("last.safetensors")
    train_tiny(photos, tmp_path / "second", f"model.name={last}", epochs=1)
    assert load_checkpoint(tmp_path / "second" / "last.safetensors").config == load_checkpoint(last).config
