"""Files that version 0.1.0 wrote before its keys were renamed still load, and answer as they did then.

`older/` holds a checkpoint, its bundle, a recipe, and the logits that both gave at three sample photos.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lipsformer import InputError, load_checkpoint, load_predictor
from lipsformer.export import verify_bundle
from lipsformer.images.samples import SAMPLES
from lipsformer.system.renamed_keys import PREPROCESSING_KEYS, RECIPE_KEYS, current_keys
from lipsformer.train import load_recipe

OLDER = Path(__file__).parent / "older"


@pytest.mark.parametrize("name", ["model.safetensors", "bundle"])
def test_an_older_model_answers_as_it_did(name: str) -> None:
    predictor = load_predictor(OLDER / name)
    assert (predictor.preprocessing.crop_pct, predictor.preprocessing.jpeg_scale) == (0.9, "full")
    for photo, logits in json.loads((OLDER / "answers.json").read_text())[name].items():
        found = predictor.runtime.infer(np.stack([predictor.prepare(SAMPLES / f"{photo}.jpg")])).logits[0]
        assert found == pytest.approx(logits, abs=2e-4)


def test_an_older_bundle_is_verified() -> None:
    parity = verify_bundle(OLDER / "bundle").parity
    assert parity.failures == []
    assert parity.files[0].limits["neighbours"] == 1e-6
    assert load_checkpoint(OLDER / "model.safetensors").metrics == {"val_top1": 0.5}


def test_an_older_recipe_means_what_it_meant() -> None:
    recipe = load_recipe(OLDER / "recipe.toml")
    assert (recipe.grad_accum_steps, recipe.lr_base_batch_size, recipe.grad_checkpointing) == (2, 512, True)
    assert (recipe.random_erasing, recipe.hflip, recipe.crop_pct) == (0.25, 0.25, 0.9)
    assert not set(recipe.to_dict()) & set(RECIPE_KEYS)
    assert load_recipe("default", ["accumulate=2"]) == load_recipe("default", {"grad_accum_steps": 2})


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    both = tmp_path / "both.toml"
    both.write_text("flip = 0.1\nhflip = 0.2\n")
    with pytest.raises(InputError, match="unknown recipe key 'flip'"):
        load_recipe(both)


def test_only_older_names_are_translated() -> None:
    assert current_keys({"flip": 1, "seed": 2}, RECIPE_KEYS) == {"hflip": 1, "seed": 2}
    assert current_keys({"crop_fraction": 1, "flip": 2}, PREPROCESSING_KEYS) == {"crop_pct": 1, "flip": 2}
