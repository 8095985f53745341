"""The [distillation] table of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lipsformer import InputError
from lipsformer.train import Recipe, load_recipe

TABLE = """
[distillation]
teacher = "a.onnx"
weight = 0.5
[distillation.preprocessing]
image_size = 224
mean = [123.7, 116.3, 103.5]
std = [58, 57, 57]
input_range = [0, 255]
layout = "nhwc"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "mine.toml").write_text(TABLE)
    return load_recipe(str(tmp_path / "mine.toml"))


def test_the_table_survives_its_file_and_its_state(recipe: Recipe, tmp_path: Path) -> None:
    found = recipe.distillation
    assert found is not None
    assert found.preprocessing is not None
    assert (found.teacher, found.kind, found.weight, found.preprocessing.std) == ("a.onnx", "logits", 0.5, (58, 57, 57))
    (tmp_path / "copy.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / "copy.toml")) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_older_recipes_have_no_teacher() -> None:
    data = load_recipe("default").to_dict()
    del data["distillation"]
    assert Recipe.from_dict(data) == load_recipe("default")
    assert "distillation" not in load_recipe("default").to_toml()


def test_single_values_change_and_the_others_stay(recipe: Recipe) -> None:
    changed = load_recipe(recipe, ["distillation.preprocessing.layout=nchw", "distillation.temperature=4.0"])
    assert recipe.differences(changed) == [
        "distillation.temperature was 2.0, is 4.0",
        'distillation.preprocessing.layout was "nhwc", is "nchw"',
    ]
    assert load_recipe("default", teacher="b.onnx", overrides=["distillation.weight=0.25"]).distillation is not None
    with pytest.raises(InputError, match=r'--teacher b.onnx: --set distillation.teacher="c.onnx" contradicts it'):
        load_recipe(recipe, ["distillation.teacher=c.onnx"], teacher="b.onnx")


def test_a_hash_belongs_to_its_teacher(recipe: Recipe) -> None:
    recorded = load_recipe(recipe, {"distillation.sha256": "ab"})
    same, other = load_recipe(recorded, teacher="a.onnx"), load_recipe(recorded, teacher="b.onnx")
    assert same.distillation is not None
    assert other.distillation is not None
    assert (same.distillation.sha256, other.distillation.sha256) == ("ab", None)
    moved = load_recipe(other, {"distillation.sha256": "ab"})
    assert recorded.differences(moved) == []
    assert recorded.differences(load_recipe(other, {"distillation.sha256": "cd"})) != []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": 3}, "recipe: distillation=3: it is a table; set its values"),
        ({"distillation.wieght": 3}, "recipe: unknown distillation key 'wieght': did you mean 'weight'?"),
        ({"distillation.weight": 0}, "recipe: distillation: weight=0: it must be above 0"),
        ({"distillation.weight": 1.5}, "recipe: distillation: weight=1.5: it must be at most 1"),
        ({"distillation.temperature": 0.0}, "recipe: distillation: temperature=0.0: it must be above 0"),
        ({"distillation.teacher": ""}, "recipe: distillation: teacher='': it must not be empty"),
        ({"distillation.kind": "both"}, "recipe: distillation: kind='both': use 'logits' or 'features'"),
        ({"distillation.kind": "features", "distillation.weight": 1.0}, "nothing would train the classifier"),
        ({"distillation.preprocessing.mean": [1, 2]}, "preprocessing: mean=[1, 2]: 3 or more entries are needed"),
        ({"distillation.preprocessing.std": [1, 2, 0]}, "preprocessing: std[2]=0: it must be above 0"),
        ({"distillation.preprocessing.input_range": [1, 0]}, "the first number must be below the second"),
        ({"distillation.preprocessing.size": 3}, "unknown preprocessing key 'size'"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(recipe: Recipe, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_recipe(recipe, changes)
    assert "\n" not in str(caught.value)


def test_a_table_without_a_teacher_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[distillation]\nweight = 0.5\n")
    with pytest.raises(InputError, match="recipe: distillation: teacher is missing"):
        load_recipe(str(tmp_path / "mine.toml"))
    assert load_recipe(str(tmp_path / "mine.toml"), teacher="x").distillation is not None
