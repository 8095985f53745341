"""Every component is a choice: each builds, computes what its formula says, trains, and makes a difference."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lipsformer.model.config import ModelConfig, config_from_dict
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.train import load_recipe
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.param_groups import param_groups
from tests.support.models.small_models import CSWIN, EQUAL, SWIN, disagreement, random_images, scrambled

BASES: dict[str, ModelConfig] = {"swin": SWIN, "cswin": CSWIN}
CHANGES: dict[str, dict[str, Any]] = {
    "layer norm": {"norm": "layer"},
    "norm in front": {"norm_position": "pre"},
    "dot product": {"attention": "dot", "value_norm": False},
    "values as they are": {"value_norm": False},
    "values normalized": {"value_norm": True},
    "learned scales": {"learned_scales": True, "temperature": 10, "value_scale": 2},  # whole, as TOML may give them
    "other scales": {"temperature": 3.0, "value_scale": 0.5, "epsilon": 0.1},
    "plain residual": {"residual": "plain"},
    "convex residual": {"residual": "convex"},
    "maxmin": {"activation": "maxmin"},
    "flat head": {"pooling": "flat"},
    "orthogonal": {"init": "orthogonal"},
    "small kernels": {"conv_kernel": 3},
    "shifts": {"shift_conv": True},
    "other shares": {"residual": "convex", "initial_shares": [0.7, 0.4, 0.5], "learned_shares": False},
    "xavier": {"init": "xavier"},
    "trunc_normal": {"init": "trunc_normal"},
    "no convolution": {"conv_branches": 0},
    "one convolution": {"conv_branches": 1},
    "two convolutions": {"conv_branches": 2},
    "shifted windows": {"shifted_windows": True},
}
CASES = [
    pytest.param(base, base.replace(**changes), id=f"{form}: {name}")
    for form, base in BASES.items()
    for name, changes in CHANGES.items()
    if not (form == "cswin" and name == "shifted windows") and base.replace(**changes) != base
]


def built(config: ModelConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(config)
    init_weights(model, config.init)
    return model


def may_be_fixed(config: ModelConfig, name: str) -> bool:
    if name.endswith(".logit"):
        return not config.learned_shares
    return config.shift_conv and ".dwconv_layers." in name and name.endswith(".weight")


@pytest.mark.parametrize(("base", "config"), CASES)
def test_a_changed_component_trains_every_parameter(base: ModelConfig, config: ModelConfig) -> None:
    model = built(config).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = F.cross_entropy(model(random_images(config, 4).float()), torch.tensor([0, 1, 2, 3]))
    loss.backward()  # type: ignore[no-untyped-call]
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(may_be_fixed(config, name) for name in fixed)
    for name, parameter in learned:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    build_optimizers(model, load_recipe("default")).step()
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in learned)
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in fixed)


@pytest.mark.parametrize(("base", "config"), CASES)
def test_a_changed_component_computes_its_formula(base: ModelConfig, config: ModelConfig) -> None:
    assert disagreement(scrambled(config)) < EQUAL
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("base", "config"), CASES)
@torch.no_grad()
def test_a_changed_component_changes_the_output(base: ModelConfig, config: ModelConfig) -> None:
    """With the base's weights where both have them, so that the component alone makes the difference."""
    before, after = built(base).eval(), built(config).eval()
    if base.init == config.init:
        own = after.state_dict()
        shared = {
            name: tensor
            for name, tensor in before.state_dict().items()
            if name in own and own[name].shape == tensor.shape and not (config.shift_conv and "dwconv" in name)
        }
        after.load_state_dict(shared, strict=False)
    image = random_images(base).float()
    assert float((before(image) - after(image)).norm() / before(image).norm()) > 1e-4


@torch.no_grad()
def test_learned_scales_start_where_the_constants_are() -> None:
    constant, learned = built(CSWIN).eval(), built(CSWIN.replace(learned_scales=True)).eval()
    learned.load_state_dict(constant.state_dict(), strict=False)
    image = random_images(CSWIN).float()
    torch.testing.assert_close(learned(image), constant(image))


@pytest.mark.parametrize(
    "config",
    [base.replace(learned_scales=True) for base in BASES.values()],
    ids=BASES,
)
def test_weight_decay_is_for_matrices_and_kernels(config: ModelConfig) -> None:
    model = built(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_decay = sorted(param_groups(model, load_recipe("default")), key=lambda group: -group["weight_decay"])
    decayed, free = ([names[p] for p in group["params"]] for group in by_decay)
    assert [group["weight_decay"] for group in by_decay] == [0.05, 0.0]
    assert sorted(decayed + free) == sorted(names.values())
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    assert set(decayed) == weights
    kinds = {name.rsplit(".", 1)[-1] for name in free}
    tables = {"relative_position_bias_table"} if config.architecture == "lipsformer_swin" else set()
    assert kinds == {"bias", "weight", "scale", "temperature", "value_scale"} | tables
