"""Configurations: variants, aliases, JSON, and a one-line error for every bad value."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import CSwinConfig, ModelConfig, SwinConfig, config_from_dict
from lipsformer.model.factory import build_model, create_model
from lipsformer.model.variants import ALIASES, VARIANTS, make_config
from lipsformer.system.errors import InputError
from lipsformer.train import load_recipe
from tests.support.models.small_models import CSWIN, SWIN

FAR_TOO_LARGE = 10**400  # a whole number beyond the largest float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "image_size=225 cannot be tiled with patch_size=4 and window_size=7; use image_size 224"),
        ({"image_size": 64}, "or keep the rest and use window_size 4 or 8"),
        ({"image_size": 16}, "image_size=16 cannot be tiled"),
        ({"image_size": 416}, "image_size=416: a whole number from 1 to 384 is needed"),
        ({"image_size": 0}, "image_size=0: a whole number from 1 to 384"),
        ({"image_size": 224.0}, "image_size=224.0: a whole number"),
        ({"num_heads": (5, 6, 12, 24)}, "5 does not divide 96 channels"),
        ({"depths": (2, 2, 6)}, "num_heads=[3, 6, 12, 24] and depths=[2, 2, 6]: one entry per stage"),
        ({"depths": (2, 2, 6, 2, 2)}, "depths=(2, 2, 6, 2, 2): 1 to 4 whole numbers"),
        ({"depths": ()}, "depths=(): 1 to 4 whole numbers"),
        ({"depths": 5}, "depths=5: 1 to 4 whole numbers"),
        ({"embed_dim": 1, "num_heads": (1, 1, 1, 1)}, "embed_dim=1: a whole number from 2 to 4096"),
        ({"drop_path": 1.0}, "drop_path=1.0: a number from 0 to 0.99"),
        ({"mlp_ratio": "4"}, "mlp_ratio='4': a number from 0.001 to 64"),
        ({"mlp_ratio": True}, "mlp_ratio=True: a number from"),
        ({"mlp_ratio": 0.001}, "mlp_ratio=0.001 gives the MLP of 96 channels no hidden ones"),
        ({"mlp_ratio": 1e300}, "mlp_ratio=1e+300: a number from 0.001 to 64"),
        ({"embed_dim": FAR_TOO_LARGE, "num_heads": (1, 1, 1, 1)}, "embed_dim=10000"),
        (
            {"embed_dim": 98, "mlp_ratio": 1 / 98, "num_heads": (1, 1, 1, 1)},
            "the MLP of 98 channels no hidden ones",
        ),
        ({"depths": (1001, 1, 1, 1)}, "depths[0]=1001: a whole number from 1 to 1000 is needed"),
        ({"num_classes": 10**7}, "num_classes=10000000: a whole number from 1 to 1000000"),
        ({"patch_size": 0}, "patch_size=0: a whole number from 1 to 384"),
        ({"temperature": math.inf}, "temperature=inf: a number from 1e-06 to 1e+06"),
        ({"temperature": FAR_TOO_LARGE}, "a number from 1e-06 to 1e+06 is needed"),
        ({"temperature": -1}, "temperature=-1: a number from"),
        ({"value_scale": 0}, "value_scale=0: a number from"),
        ({"epsilon": 0}, "epsilon=0: a number from 1e-30 to 1e+06"),
        ({"epsilon": math.nan}, "epsilon=nan: a number from"),
        ({"windowsize": 8}, "unknown model setting 'windowsize': did you mean 'window_size'?"),
        ({"split_sizes": (1, 2, 7, 7)}, "unknown model setting 'split_sizes'"),
        ({"norm": "batch"}, "norm='batch': use 'center' or 'layer'"),
        ({"norm": ["center"]}, "norm=['center']: use 'center' or 'layer'"),
        ({"norm_position": "middle"}, "norm_position='middle': use 'post' or 'pre'"),
        ({"attention": None}, "attention=None: use 'cosine' or 'dot'"),
        ({"residual": "none"}, "residual='none': use 'weighted', 'plain' or 'convex'"),
        ({"activation": "relu"}, "activation='relu': use 'gelu' or 'maxmin'"),
        ({"activation": "maxmin", "mlp_ratio": 1 / 96, "num_heads": (3, 3, 3, 3)}, "must be even"),
        ({"pooling": "max"}, "pooling='max': use 'mean' or 'flat'"),
        ({"conv_kernel": 4}, "conv_kernel=4: use 3, 5 or 7"),
        ({"shift_conv": "yes"}, "shift_conv='yes': true or false is needed"),
        ({"initial_shares": (0.5, 0.5, 1.0)}, "initial_shares[2]=1.0: a number from 1e-06 to 0.999999 is needed"),
        ({"initial_shares": (0.5, 0.5)}, "initial_shares=(0.5, 0.5): 3 numbers from 1e-06 to 0.999999 are needed"),
        ({"initial_shares": (0.5,) * 4}, "initial_shares=(0.5, 0.5, 0.5, 0.5): 3 numbers from 1e-06 to 0.999999 are"),
        ({"init": "kaiming"}, "init='kaiming': use 'spectral', 'xavier', 'trunc_normal' or 'orthogonal'"),
        ({"conv_branches": 3}, "conv_branches=3: a whole number from 0 to 2"),
        ({"conv_branches": -1}, "conv_branches=-1: a whole number from 0 to 2"),
        ({"conv_branches": True}, "conv_branches=True: a whole number"),
        ({"value_norm": "yes"}, "value_norm='yes': true or false is needed"),
        ({"learned_scales": 1}, "learned_scales=1: true or false is needed"),
        ({"shifted_windows": None}, "shifted_windows=None: true or false is needed"),
        ({"attention": "dot", "value_norm": True}, "value_norm and learned_scales belong to attention='cosine'"),
        ({"attention": "dot", "learned_scales": True}, "value_norm and learned_scales belong to attention='cosine'"),
    ],
)
def test_a_bad_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as failure:
        make_config("lipsformer_swin_tiny", **changes)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_sizes": (1, 2, 7)}, "split_sizes=[1, 2, 7] and depths=[1, 2, 21, 1]: one entry per stage"),
        ({"split_sizes": (0, 2, 7, 7)}, "split_sizes[0]=0: a whole number from 1 to 1000 is needed"),
        ({"split_sizes": (1, 2, 7.0, 7)}, "split_sizes[2]=7.0: a whole number from 1 to 1000"),
        ({"split_sizes": [True, 2, 7, 7]}, "split_sizes[0]=True: a whole number from 1 to 1000"),
        ({"split_sizes": {1, 2, 7, 8}}, "split_sizes={8, 1, 2, 7}: 1 to 4 whole numbers from 1 to 1000"),
        ({"split_sizes": "1277"}, "split_sizes='1277': 1 to 4 whole numbers from 1 to 1000"),
        ({"split_sizes": (1, 2, 5, 7)}, "split_sizes=[1, 2, 5, 7]; use image_size 160 or 320"),
        ({"image_size": 230}, "image_size=230 cannot be tiled with patch_size=4 and split_sizes=[1, 2, 7, 7]"),
        ({"num_heads": (1, 4, 8, 16)}, "rows and columns share them, so 1 is odd"),
        ({"window_size": 7}, "unknown model setting 'window_size'"),
        ({"shifted_windows": True}, "unknown model setting 'shifted_windows'"),
        (
            {"attention": "dot"},
            "value_norm and learned_scales belong to attention='cosine'; with 'dot' set both to false",
        ),
    ],
)
def test_a_bad_cswin_configuration_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as failure:
        make_config("lipsformer_cswin_tiny", **changes)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_heads_may_be_odd_where_they_all_attend_everywhere() -> None:
    config = make_config("lipsformer_cswin_nano", num_heads=(2, 2, 1, 1))
    assert isinstance(config, CSwinConfig)
    assert [config.attends_everywhere(stage) for stage in range(4)] == [False, False, True, True]


def test_whole_numbers_become_floats() -> None:
    config = make_config("lipsformer_swin_nano", mlp_ratio=2, temperature=10, value_scale=1, drop_path=0)
    values = (config.mlp_ratio, config.temperature, config.value_scale, config.drop_path)
    assert all(type(value) is float for value in values)
    assert config == make_config("lipsformer_swin_nano", mlp_ratio=2.0)


def test_a_configuration_is_hashable_frozen_and_pickles() -> None:
    copy = pickle.loads(pickle.dumps(SWIN))  # noqa: S301
    assert (copy, hash(copy)) == (SWIN, hash(SWIN))
    assert SWIN.replace(depths=[1, 2, 2, 1]).depths == (1, 2, 2, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.norm = "layer"  # type: ignore[misc]


def test_the_constructor_itself_refuses_in_one_line() -> None:
    with pytest.raises(InputError, match="unknown field 'windowsize': did you mean 'window_size'"):
        SwinConfig(windowsize=7)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="norm='batch': use 'center' or 'layer'"):
        CSwinConfig(norm="batch")  # type: ignore[arg-type]


def test_an_unknown_variant_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'lipsformer_swin_tiny'"):
        create_model("lipsformer_swin_tinny")
    with pytest.raises(InputError, match="did you mean 'lipsformer_tiny'"):
        create_model("lipsformer_tinyy")


@pytest.mark.parametrize(("alias", "name"), ALIASES.items(), ids=ALIASES)
def test_the_papers_names_are_the_cswin_form(alias: str, name: str) -> None:
    assert name == f"lipsformer_cswin_{alias.removeprefix('lipsformer_')}"
    assert make_config(alias, drop_path=0.3) == VARIANTS[name].replace(drop_path=0.3)
    recipe = load_recipe("default", [f"model.name={alias}", "model.drop_path=0.3"])
    assert make_config(**recipe.model) == make_config(name, drop_path=0.3)


def test_a_model_is_created_by_alias() -> None:
    assert create_model("lipsformer_nano").config == VARIANTS["lipsformer_cswin_nano"]


@pytest.mark.parametrize(("image_size", "window_size"), [(32, 8), (64, 4), (96, 3), (128, 8), (224, 7), (384, 12)])
@torch.no_grad()
def test_image_sizes_that_can_be_tiled(image_size: int, window_size: int) -> None:
    model = build_model(SWIN.replace(image_size=image_size, window_size=window_size, depths=(1, 1, 1, 1)))
    assert model(torch.randn(1, 3, image_size, image_size)).shape == (1, 5)
    with pytest.raises(ValueError, match=rf"\(batch, 3, {image_size}, {image_size}\) needed"):
        model(torch.randn(1, 3, image_size, image_size + 4))


@pytest.mark.parametrize(
    ("image_size", "patch_size", "split_sizes"),
    [
        (32, 4, (1, 2, 7, 7)),
        (32, 2, (2, 4, 4, 4)),
        (96, 3, (4, 2, 1, 1)),
        (224, 4, (1, 2, 7, 7)),
        (384, 4, (1, 2, 12, 12)),
    ],
)
@torch.no_grad()
def test_image_sizes_that_stripes_can_tile(image_size: int, patch_size: int, split_sizes: tuple[int, ...]) -> None:
    changes = {"image_size": image_size, "patch_size": patch_size, "split_sizes": split_sizes}
    model = build_model(CSWIN.replace(**changes, depths=(1, 1, 1, 1)))
    assert model(torch.randn(1, 3, image_size, image_size)).shape == (1, 5)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_configurations_survive_json(config: ModelConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="architecture 'resnet' is not known"):
        config_from_dict({**SWIN.to_dict(), "architecture": "resnet"})


@pytest.mark.parametrize(
    "changes", [{"embed_dim": 2**70}, {"embed_dim": 4096}, {"mlp_ratio": 1e308}, {"depths": (200_000, 1, 1, 1)}]
)
def test_a_checkpoint_of_impossible_sizes_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    metadata = {
        "format": 1,
        "config": {**CSWIN.to_dict(), **changes},
        "classes": list("abcde"),
        "preprocessing": Preprocessing(image_size=CSWIN.image_size).to_dict(),
        "metrics": {},
    }
    path = tmp_path / "model.safetensors"
    save_file(build_model(CSWIN).state_dict(), path, metadata={"lipsformer": json.dumps(metadata)})
    with pytest.raises(InputError, match=r"do not fit its configuration|metadata cannot be read"):
        load_checkpoint(path)
