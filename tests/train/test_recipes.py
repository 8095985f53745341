"""Recipes: how they extend and override each other, and what the packaged ones document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lipsformer import InputError
from lipsformer.model.variants import VARIANTS, make_config
from lipsformer.train import Recipe, load_recipe, recipe_names
from lipsformer.train.recipe import PACKAGED

BASES = ("default", "imagenet")  # what others extend


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in BASES])
def test_a_recipe_documents_its_command_cost_and_result(name: str) -> None:
    head = [line for line in (PACKAGED / f"{name}.toml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(head)
    assert f"--recipe {name} " in text
    assert "-m lipsformer train " in text or "lipsformer train " in text
    assert "Cost: " in text
    assert "Result: " in text


def test_every_form_size_and_length_of_the_paper_has_its_recipe() -> None:
    for form in ("swin", "cswin"):
        for size, drop_path in (("tiny", 0.2), ("small", 0.3), ("base", 0.5)):
            for epochs in (100, 300):
                recipe = load_recipe(f"imagenet_{form}_{size}_{epochs}")
                assert (recipe.epochs, recipe.model["drop_path"]) == (epochs, drop_path)
                assert make_config(**recipe.model) == VARIANTS[f"lipsformer_{form}_{size}"].replace(drop_path=drop_path)
                assert (recipe.rand_augment, recipe.mixup, recipe.cutmix, recipe.random_erasing) == (
                    9.0,
                    0.8,
                    1.0,
                    0.25,
                )
                assert (recipe.weight_decay, recipe.clip_grad, recipe.label_smoothing) == (0.05, 5.0, 0.1)


def test_the_rate_of_a_large_batch_is_in_proportion() -> None:
    recipe = load_recipe("imagenet_swin_tiny_300", ["batch_size=4096"])
    assert recipe.peak_rate == pytest.approx(4e-3)


def test_all_recipes_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for name in recipe_names():
        assert f"`{name}`" in text or name == "default" or name.startswith("imagenet"), name


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipe_loads_and_survives_its_own_file(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "copy.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / "copy.toml")) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.differences(recipe) == []


def test_overrides_come_last_and_a_new_variant_starts_afresh() -> None:
    recipe = load_recipe("default", ["model.drop_path=0.3", "epochs = 7", "betas=[0.8, 0.9]"])
    assert (recipe.epochs, recipe.betas, recipe.model["drop_path"]) == (7, (0.8, 0.9), 0.3)
    assert dict(load_recipe(recipe, {"model.name": "lipsformer_swin_nano"}).model) == {"name": "lipsformer_swin_nano"}
    assert load_recipe(recipe, {"model.name": "lipsformer_swin_tiny"}) == recipe
    assert recipe.differences(load_recipe(recipe, ["workers=5", "seed=3"])) == ["seed was 0, is 3"]


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


def test_the_model_is_merged_before_the_overrides() -> None:
    overrides = ["model.drop_path=0.3", "epochs=7", "model.image_size=64"]
    recipe = load_recipe("default", overrides, model="lipsformer_swin_nano", epochs=7)
    assert recipe.model == {"name": "lipsformer_swin_nano", "drop_path": 0.3, "image_size": 64}
    assert recipe.epochs == 7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.name=lipsformer_swin_tiny"], '--set model.name="lipsformer_swin_tiny" contradicts it'),
        (["seed=3", "model.name=none.safetensors"], '--set model.name="none.safetensors" contradicts it'),
        (['model={name = "lipsformer_swin_small"}'], '--set model.name="lipsformer_swin_small" contradicts it'),
        (["epochs=5"], "--epochs 7: --set epochs=5 contradicts it"),
        (["epochs=7.5"], "--epochs 7: --set epochs=7.5 contradicts it"),
        ({"epochs": None}, "--epochs 7: --set epochs=unset contradicts it"),
    ],
)
def test_an_override_that_contradicts_an_option_is_refused(overrides: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        load_recipe("default", overrides, model="lipsformer_swin_nano", epochs=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "recipe: epochs=0: it must be at least 1"),
        ({"betas": (0.9, 1)}, "recipe: betas[1]=1: it must be below 1"),
        ({"crop_scale": (0.9, 0.1)}, "recipe: crop_scale=[0.9, 0.1]: the first number must not be above the second"),
        ({"model": {}}, "recipe: the [model] table needs the name of a variant or checkpoint"),
        ({"learning_rte": 1.0}, "unknown recipe key 'learning_rte': did you mean 'learning_rate'?"),
    ],
)
def test_a_recipe_in_python_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        Recipe(**{**load_recipe("default").to_dict(), **change})


def test_a_recipe_opens_no_file() -> None:
    assert load_recipe("default", model="none.safetensors").model["name"] == "none.safetensors"


def test_numbers_become_what_the_fields_promise() -> None:
    recipe = load_recipe("default", {"mixup": 1, "betas": [0, 0.5], "model.depths": (1, 1, 1, 1)})
    assert isinstance(recipe.mixup, float)
    assert recipe.betas == (0.0, 0.5)
    assert recipe.to_dict()["model"]["depths"] == [1, 1, 1, 1]  # as a file gives them back
    assert Recipe.from_dict(recipe.to_dict()).to_dict() == recipe.to_dict()


def test_a_missing_value_is_named() -> None:
    data = load_recipe("default").to_dict()
    del data["seed"]
    with pytest.raises(InputError, match=r"^recipe: seed is missing$"):
        Recipe.from_dict(data)
