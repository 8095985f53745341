"""The packaged recipes: each tells its command, its cost and what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsformer.model.variants import VARIANTS, make_config
from lipsformer.train import load_recipe, recipe_names
from lipsformer.train.recipe import PACKAGED

BASES = ("default", "imagenet")  # what others extend


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in BASES])
def test_a_recipe_tells_its_command_its_cost_and_its_result(name: str) -> None:
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
