"""The parts of training, each on its own: recipes, order, crops, schedule, weight decay, averaged weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lipsformer import InputError, create_model
from lipsformer.train import Recipe, load_recipe, recipe_names
from lipsformer.train.data.crops import random_box
from lipsformer.train.data.dataset import TrainingBatchSampler
from lipsformer.train.data.rng import Stream, generator
from lipsformer.train.data.sampler import EpochSampler, split_batch
from lipsformer.train.distributed import DistributedContext
from lipsformer.train.optim.ema import average_weights
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.param_groups import freeze_stages, param_groups
from lipsformer.train.optim.schedule import learning_rate


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipe_loads_and_survives_its_own_file(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "copy.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / "copy.toml")) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.differences(recipe) == []


def test_overrides_come_last_and_a_new_variant_brings_its_own_settings() -> None:
    recipe = load_recipe("default", ["model.drop_path=0.3", "epochs = 7", "betas=[0.8, 0.9]"])
    assert (recipe.epochs, recipe.betas, recipe.model["drop_path"]) == (7, (0.8, 0.9), 0.3)
    assert dict(load_recipe(recipe, {"model.name": "lipsformer_swin_nano"}).model) == {"name": "lipsformer_swin_nano"}
    assert load_recipe(recipe, {"model.name": "lipsformer_swin_tiny"}) == recipe
    assert recipe.differences(load_recipe(recipe, ["workers=5", "seed=3"])) == ["seed was 0, is 3"]


def make_sampler(images: int, *overrides: str, classes: int = 3) -> EpochSampler:
    return EpochSampler(np.arange(images) % classes, load_recipe("default", ["batch_size=16", "epochs=3", *overrides]))


def alone(rank: int = 0, count: int = 1) -> DistributedContext:
    return DistributedContext(rank=rank, world_size=count, device=torch.device("cpu"))


@pytest.mark.parametrize("images", [3, 64, 100])
def test_each_epoch_shows_every_image_once(images: int) -> None:
    sampler = make_sampler(images)
    keys = list(TrainingBatchSampler(sampler, alone()))
    assert len(keys) == sampler.total == 3 * sampler.steps_per_epoch
    for epoch in range(3):
        shown = [(position, index) for batch in keys for (e, position, index) in batch if e == epoch]
        assert [position for position, _ in shown] == list(range(images))
        assert sorted(index for _, index in shown) == list(range(images))
    assert max(map(len, keys)) <= 16
    assert max(map(len, keys)) - min(map(len, keys)) <= 1
    for start in (0, 1, sampler.steps_per_epoch, len(keys) - 1):
        assert list(TrainingBatchSampler(sampler, alone(), start)) == keys[start:]


@pytest.mark.parametrize("images", [37, 64, 100])
@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_of_the_processes_are_the_batch(images: int, count: int) -> None:
    sampler = make_sampler(images)
    shares = [list(TrainingBatchSampler(sampler, alone(rank, count))) for rank in range(count)]
    for whole, *parts in zip(TrainingBatchSampler(sampler, alone()), *shares, strict=True):
        assert [key for part in parts for key in part] == whole
        assert all(len(part) % 2 == 0 for part in parts[:-1])  # no pair of partners is torn apart
        assert min(map(len, parts)) > 0


def test_cuts_of_accumulation_lie_within_the_shares() -> None:
    for size in range(1, 70):
        for count, grad_accum_steps in ((1, 1), (2, 2), (3, 4)):
            parts, shares = split_batch(size, count * grad_accum_steps), split_batch(size, count)
            assert [part.start for part in parts[::grad_accum_steps]] == [share.start for share in shares]
            assert parts[-1].stop == size
            assert all(a.stop == b.start and a.stop % 2 == 0 for a, b in itertools.pairwise(parts))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    make_sampler(64).check_shares(8)
    with pytest.raises(InputError, match=r"batch_size=16 cannot be shared evenly by 3 processes; use 15"):
        make_sampler(64).check_shares(3)
    with pytest.raises(InputError, match=r"cannot be shared evenly by 2 processes x 3 parts; use 18"):
        make_sampler(64, "grad_accum_steps=3").check_shares(2)
    with pytest.raises(InputError, match=r"batches of 8 images are too few for 8 processes"):
        make_sampler(17).check_shares(8)


def test_balanced_epochs_show_every_class_equally_often() -> None:
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    sampler = EpochSampler(labels, load_recipe("default", ["batch_size=16", "epochs=2", "balanced=true"]))
    epochs = [
        np.concatenate(
            [sampler.images(step) for step in range(e * sampler.steps_per_epoch, (e + 1) * sampler.steps_per_epoch)]
        )
        for e in range(2)
    ]
    for shown in epochs:
        assert len(shown) == 100
        assert sorted(np.bincount(labels[shown])) == [33, 33, 34]
        assert np.bincount(shown, minlength=100).max() == 7  # 33 or 34 of five images: each six or seven times
        assert np.bincount(shown, minlength=100)[:80].max() == 1
        assert np.bincount(shown, minlength=100)[80:95].min() >= 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_draws_depend_on_what_they_are_for_alone() -> None:
    keys = list(itertools.product(Stream, range(3), range(3)))
    first = {key: generator(0, *key).random(4).tolist() for key in keys}
    again = {key: generator(0, *key).random(4).tolist() for key in reversed(keys)}
    assert first == again
    assert len({tuple(values) for values in first.values()}) == len(keys)


def test_crops_stay_inside_and_show_the_share_they_should() -> None:
    draws = np.random.default_rng(0)
    for width, height in ((348, 348), (640, 480), (50, 900)):
        for _ in range(300):
            left, top, right, bottom = random_box(draws, (width, height), (0.2, 0.9))
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            share = (right - left) * (bottom - top) / (width * height)
            assert share <= 0.9 + 1e-9
            assert width != height or share > 0.19


def test_schedule_starts_at_the_peak_and_ends_near_nothing() -> None:
    rates = [learning_rate(step, 1000, 2e-3) for step in range(1000)]
    assert rates[0] == 2e-3
    assert all(after < before for before, after in itertools.pairwise(rates))
    assert 0 < rates[-1] < 1e-8
    assert learning_rate(500, 1000, 2e-3) == pytest.approx(1e-3)


def test_only_matrices_and_kernels_decay() -> None:
    model = create_model("lipsformer_swin_nano", 3)
    decayed, free = sorted(param_groups(model, load_recipe("default")), key=lambda g: -g["weight_decay"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert all(names[p].endswith("weight") and p.ndim >= 2 for p in decayed["params"])
    endings = {names[p].rsplit(".", 1)[-1] for p in free["params"]}
    assert endings == {"bias", "weight", "scale", "relative_position_bias_table"}


def test_the_rate_decays_from_layer_to_layer() -> None:
    model = create_model("lipsformer_swin_nano", 3)
    depths = model.config.depths
    factor = {
        id(p): g["lr_scale"]
        for g in param_groups(model, load_recipe("default", ["layer_decay=0.5"]))
        for p in g["params"]
    }
    last = sum(depths) + 1
    found = {name: round(-np.log2(factor[id(p)])) for name, p in model.named_parameters()}
    assert found["head.weight"] == found["norm.bias"] == 0
    assert found["patch_embed.proj.weight"] == last
    assert found["layers.0.blocks.0.attn.qkv.weight"] == last - 1
    assert (
        found["layers.0.downsample.reduction.weight"] == found["layers.1.blocks.0.mlp.fc1.bias"] == last - 1 - depths[0]
    )
    assert found[f"layers.3.blocks.{depths[3] - 1}.attn.proj.weight"] == 1
    assert set(factor) == {id(p) for p in model.parameters()}


def test_frozen_stages_are_left_out_of_the_optimizer() -> None:
    model = create_model("lipsformer_cswin_nano", 3)
    freeze_stages(model, 2)
    trained = {id(p) for g in param_groups(model, load_recipe("default")) for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) not in trained}
    assert {name.split(".")[0] for name in names} == {"patch_embed", "layers"}
    assert {name.split(".")[1] for name in names if name.startswith("layers")} == {"0", "1"}
    assert all(p.requires_grad == (id(p) in trained) for p in model.parameters())


def test_muon_steps_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = create_model("lipsformer_swin_nano", 3)
    adamw, muon = build_optimizers(model, load_recipe("default", ["optimizer=muon"])).members
    assert isinstance(muon, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    by = [{names[id(p)] for g in member.param_groups for p in g["params"]} for member in (adamw, muon)]
    assert by[0] | by[1] == set(names.values())
    assert not by[0] & by[1]
    assert all(
        ".blocks." in name and name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
        for name in by[1]
    )
    assert len(by[1]) == 4 * sum(model.config.depths)


def test_a_rate_for_a_reference_batch_scales_with_the_batch() -> None:
    assert load_recipe("default", ["batch_size=256"]).peak_rate == 1e-3
    assert load_recipe("default", ["batch_size=256", "lr_base_batch_size=1024"]).peak_rate == 0.25e-3


def test_recipes_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "fruit"\nepochs = 7\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\nseed = 3\n[model]\ndrop_path = 0.3\n')
    recipe = load_recipe(str(tmp_path / "b.toml"))
    assert (recipe.epochs, recipe.seed, recipe.model["drop_path"]) == (7, 3, 0.3)
    assert recipe.crop_scale == load_recipe("fruit").crop_scale
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    with pytest.raises(InputError, match=r"extends leads back to"):
        load_recipe(str(tmp_path / "b.toml"))
    (tmp_path / "a.toml").write_text("extends = 3\n")
    with pytest.raises(InputError, match=r"a\.toml: extends=3: the name of one recipe is needed"):
        load_recipe(str(tmp_path / "a.toml"))


def test_average_forgets_the_initial_weights_in_a_short_run() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = average_weights(model, 0.9999)
    average.update_parameters(model)
    nn.init.ones_(model.weight)
    for _ in range(50):
        average.update_parameters(model)
    assert float(average.module.weight.detach()) > 0.99

    expected = 0.0
    average, fast = average_weights(model, 0.5), nn.Linear(1, 1, bias=False)
    for step in range(30):
        nn.init.constant_(fast.weight, float(step))
        average.update_parameters(fast)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = float(step) if step == 0 else decay * expected + (1 - decay) * step
    assert float(average.module.weight.detach()) == pytest.approx(expected)
    assert torch.is_tensor(average.n_averaged)
