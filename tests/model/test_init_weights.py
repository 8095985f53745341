"""Initial weights: what each scheme promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import create_model
from lipsformer.model.norm import CenterNorm

FORMS = ["lipsformer_swin_nano", "lipsformer_cswin_nano"]


def layers_of(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def assert_deviation(weight: torch.Tensor, expected: float) -> None:
    """Within six standard errors, which for a bounded or normal distribution are at most 6 / sqrt(2 n)."""
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(
        expected, rel=6 / math.sqrt(2 * weight.numel())
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("init", ["spectral", "xavier", "trunc_normal"])
@pytest.mark.parametrize("norm", ["center", "layer"])
def test_what_all_schemes_promise(name: str, init: str, norm: str) -> None:
    torch.manual_seed(0)
    model = create_model(
        name, 3, init=init, norm=norm, learned_scales=True, temperature=7.0, value_scale=0.5, conv_branches=2
    )
    config: ModelConfig = model.config
    constants = {"temperature": 7.0, "value_scale": 0.5, "scale": 1 / sum(config.depths)}
    found = set()
    for path, parameter in model.named_parameters():
        kind = path.rsplit(".", 1)[-1]
        if kind in constants:
            found.add(kind)
            assert torch.equal(parameter, torch.full_like(parameter, constants[kind])), path
        elif kind == "relative_position_bias_table":
            assert_deviation(parameter, 0.02)
    assert found == set(constants)
    for module in model.modules():
        if isinstance(module, CenterNorm | nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
        elif isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            assert module.bias is not None
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.5 * bound < float(module.bias.detach().abs().max()) <= bound


@pytest.mark.parametrize("name", FORMS)
def test_spectral_gives_every_layer_norm_one(name: str) -> None:
    torch.manual_seed(0)
    for layer in layers_of(create_model(name, 3)):
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_xavier_has_glorots_deviation(name: str) -> None:
    torch.manual_seed(0)
    for layer in layers_of(create_model(name, 3, init="xavier")):
        weight = layer.weight
        area = weight[0, 0].numel() if weight.ndim == 4 else 1
        assert_deviation(weight, math.sqrt(2 / (area * (weight.shape[0] + weight.shape[1]))))


@pytest.mark.parametrize("name", ["swin_nano", "cswin_nano", *FORMS])
def test_trunc_normal_leaves_convolutions_to_pytorch(name: str) -> None:
    torch.manual_seed(0)
    for layer in layers_of(create_model(name, 3, init="trunc_normal")):
        if isinstance(layer, nn.Linear):
            assert_deviation(layer.weight, 0.02)
        else:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert float(layer.weight.detach().abs().max()) <= bound
            assert_deviation(layer.weight, bound / math.sqrt(3))
