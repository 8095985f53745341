"""Optimizers: parameter groups, the learning-rate schedule, frozen stages and averaged weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lipsformer.model.blocks import LipsFormer
from lipsformer.model.factory import build_model
from lipsformer.model.variants import make_config
from lipsformer.train import load_recipe
from lipsformer.train.optim.adamw2 import LARGEST_SHARE, AdamW2, largest_singular_value
from lipsformer.train.optim.ema import average_weights
from lipsformer.train.optim.muon import Muon
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.param_groups import freeze_stages, param_groups
from lipsformer.train.optim.schedule import learning_rate


@pytest.fixture
def model() -> LipsFormer:
    """Without initial weights, which take longer than everything else here."""
    return build_model(make_config("lipsformer_swin_nano", num_classes=3))


def test_schedule_starts_at_the_peak_and_ends_near_nothing() -> None:
    rates = [learning_rate(step, 1000, 2e-3) for step in range(1000)]
    assert rates[0] == 2e-3
    assert all(after < before for before, after in itertools.pairwise(rates))
    assert 0 < rates[-1] < 1e-8
    assert learning_rate(500, 1000, 2e-3) == pytest.approx(1e-3)


def test_only_matrices_and_kernels_decay(model: LipsFormer) -> None:
    decayed, free = sorted(param_groups(model, load_recipe("default")), key=lambda g: -g["weight_decay"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert all(names[p].endswith("weight") and p.ndim >= 2 for p in decayed["params"])
    endings = {names[p].rsplit(".", 1)[-1] for p in free["params"]}
    assert endings == {"bias", "weight", "scale", "relative_position_bias_table"}


def test_the_rate_decays_from_layer_to_layer(model: LipsFormer) -> None:
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


def test_frozen_stages_are_left_out_of_the_optimizer(model: LipsFormer) -> None:
    freeze_stages(model, 2)
    trained = {id(p) for g in param_groups(model, load_recipe("default")) for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) not in trained}
    assert {name.split(".")[0] for name in names} == {"patch_embed", "layers"}
    assert {name.split(".")[1] for name in names if name.startswith("layers")} == {"0", "1"}
    assert all(p.requires_grad == (id(p) in trained) for p in model.parameters())


def test_muon_steps_the_matrices_of_the_blocks_and_adamw_the_rest(model: LipsFormer) -> None:
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


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 8)])
def test_muon_on_a_cpu_takes_the_steps_of_torch_in_float32(shape: tuple[int, int]) -> None:
    # torch 2.13's own rounds to bfloat16, 8 bits, in each of the 5 iterations; on this CPU ours rounds to float32
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for _ in range(3)] for _ in range(2))
    groups = [{"params": ours, "weight_decay": 0.05}]
    steppers = [
        Muon(groups, lr=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(shape, generator=generator)
            other.grad = own.grad.clone()
        for stepper in steppers:
            stepper.step()
    for own, other in zip(ours, theirs, strict=True):
        apart, moved = (own - other).detach().norm(), (other - 1).detach().norm()
        assert 0 < float(apart) < 0.02 * float(moved)
    singular = torch.linalg.svdvals(Muon._orthogonalize(torch.randn((2, *shape), generator=generator), groups[0]))
    assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.3


def adamw2(shapes: list[tuple[int, ...]], rate: float) -> tuple[list[nn.Parameter], AdamW2]:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [
        {"params": weights[:-1], "weight_decay": 0.05, "bounded": True},
        {"params": weights[-1:], "weight_decay": 0.0, "bounded": False},
    ]
    return weights, AdamW2(groups, lr=rate, betas=(0.9, 0.999))


def test_no_step_of_adamw2_moves_a_matrix_by_more_than_its_share() -> None:
    for rate in (1e-4, 0.03, 10.0):
        weights, bounded = adamw2([(8, 24), (8, 24), (6, 2, 3, 3), (5,)], rate)
        free = [nn.Parameter(weight.detach().clone()) for weight in weights]
        plain = torch.optim.AdamW(
            [{"params": free[:-1], "weight_decay": 0.05}, {"params": free[-1:], "weight_decay": 0.0}], lr=rate
        )
        generator, shares = torch.Generator().manual_seed(1), []
        for step in range(20):
            before = [weight.detach().clone() for weight in weights]
            for own, other in zip(weights, free, strict=True):
                own.grad = torch.randn(own.shape, generator=generator)
                other.grad = own.grad.clone()
            bounded.step()
            plain.step()
            for weight, old in zip(weights[:-1], before, strict=False):
                moved, norm = (torch.linalg.matrix_norm(x.detach().flatten(1), 2) for x in (weight - old, old))
                shares.append(float(moved / norm))
            torch.testing.assert_close(weights[-1], free[-1])  # no matrix: AdamW's own step
            if rate == 1e-4:
                torch.testing.assert_close(weights[step % 3], free[step % 3])
        # power iteration estimates both norms from below, for such random updates by up to a half
        assert max(shares) < (1.5 * LARGEST_SHARE if rate > 1e-4 else LARGEST_SHARE)
        assert rate < 10 or min(shares) > 0.7 * LARGEST_SHARE


def test_the_power_iteration_reaches_the_largest_singular_value() -> None:
    matrices = torch.randn(3, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrices[1] = 0
    vectors = torch.ones(3, 9, dtype=torch.float64)
    for _ in range(60):
        norms, vectors = largest_singular_value(matrices, vectors)
    torch.testing.assert_close(norms, torch.linalg.matrix_norm(matrices, 2), rtol=1e-6, atol=0)
    assert norms[1] == 0
    assert vectors[1].equal(torch.ones(9, dtype=torch.float64))


def test_a_matrix_of_zeros_is_not_stuck() -> None:
    weights, bounded = adamw2([(4, 4), (4,)], 0.1)
    with torch.no_grad():
        weights[0].zero_()
    weights[0].grad = torch.ones(4, 4)
    bounded.step()
    assert float(weights[0].detach().abs().min()) > 0.09


def test_adamw2_bounds_weights_of_layers_and_no_tables(model: LipsFormer) -> None:
    (optimizer,) = build_optimizers(model, load_recipe("default", ["optimizer=adamw2"])).members
    assert isinstance(optimizer, AdamW2)
    names = {id(p): name for name, p in model.named_parameters()}
    bounded = {names[id(p)] for group in optimizer.param_groups if group["bounded"] for p in group["params"]}
    assert {"head.weight", "patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"} <= bounded
    assert all(name.endswith("weight") and "norm" not in name for name in bounded)


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
