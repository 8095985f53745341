"""The parts of training, each on its own: recipes, order, crops, schedule, weight decay, averaged weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lipsformer import create_model
from lipsformer.train import Recipe, load_recipe, recipe_names
from lipsformer.train.data import TrainingBatches, random_box
from lipsformer.train.draws import Purpose, generator
from lipsformer.train.optimisation import average_weights, decay_groups, learning_rate


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


@pytest.mark.parametrize("images", [3, 64, 100])
def test_each_epoch_shows_every_image_once(images: int) -> None:
    recipe = load_recipe("default", {"batch_size": 16, "epochs": 3})
    batches = TrainingBatches(images, recipe)
    keys = list(batches)
    assert len(keys) == len(batches) == 3 * batches.steps_per_epoch
    for epoch in range(3):
        shown = [index for batch in keys for (e, index) in batch if e == epoch]
        assert sorted(shown) == list(range(images))
    assert max(map(len, keys)) <= 16
    assert max(map(len, keys)) - min(map(len, keys)) <= 1
    for start in (0, 1, batches.steps_per_epoch, len(keys) - 1):
        assert list(TrainingBatches(images, recipe, start)) == keys[start:]


def test_draws_depend_on_what_they_are_for_alone() -> None:
    keys = list(itertools.product(Purpose, range(3), range(3)))
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
    decayed, free = decay_groups(model, 0.05)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert all(names[p].endswith("weight") and p.ndim >= 2 for p in decayed["params"])
    endings = {names[p].rsplit(".", 1)[-1] for p in free["params"]}
    assert endings == {"bias", "weight", "scale", "relative_position_bias_table"}


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
