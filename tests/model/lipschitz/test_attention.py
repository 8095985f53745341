"""The two bounds of scaled cosine similarity attention, against the steepest that can be found."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lipsformer.model.lipschitz.attention as bounds_of_attention
from lipsformer.evaluation.lipschitz.local import jacobian_norm
from lipsformer.model.config import CSwinConfig, SwinConfig
from lipsformer.model.cswin import CrossShapedAttention
from lipsformer.model.lipschitz.attention import attention_bound, heads_of, largest_shares, paper_bound
from lipsformer.model.lipschitz.bounds import bound_attention
from lipsformer.model.swin import WindowAttention
from tests.model.lipschitz.slopes import steepest

EPSILON = 1e-6
SWIN = SwinConfig(image_size=32, window_size=2, embed_dim=6, num_heads=(2, 2, 2, 2), value_norm=True, epsilon=EPSILON)
CSWIN = CSwinConfig(image_size=32, embed_dim=8, num_heads=(2, 2, 2, 2), split_sizes=(2, 2, 2, 2))
LEARNED: dict[str, Any] = {"learned_scales": True, "value_scale": 0.7, "temperature": 3.0}
Attention = WindowAttention | CrossShapedAttention

# name: attention, side of its map
CASES: dict[str, tuple[Attention, int]] = {
    "windows": (WindowAttention(SWIN, 0, 0), 4),
    "shifted windows": (WindowAttention(SWIN.replace(shifted_windows=True), 0, 1), 8),
    "one head": (WindowAttention(SWIN.replace(num_heads=(1, 1, 1, 1)), 0, 0), 2),
    "learned scales": (WindowAttention(SWIN.replace(**LEARNED), 0, 0), 4),
    "small epsilon": (WindowAttention(SWIN.replace(epsilon=1e-12), 0, 0), 2),
    "single tokens": (WindowAttention(SWIN, 3, 0), 1),
    "stripes": (CrossShapedAttention(CSWIN, 0), 8),
    "stripes, learned scales": (CrossShapedAttention(CSWIN.replace(**LEARNED), 1), 4),
    "everywhere": (CrossShapedAttention(CSWIN.replace(image_size=64), 3), 2),
}


def scrambled(attention: Attention) -> Attention:
    """With random parameters, signs of the scales included, in float64."""
    generator = torch.Generator().manual_seed(0)
    attention = attention.double()
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "temperature" in name or "value_scale" in name:
                parameter.mul_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith("qkv.bias"):
                parameter.zero_()  # so that inputs near zero are where the normalizations are steepest
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return attention


@pytest.mark.parametrize("case", CASES)
def test_no_pair_is_steeper_than_the_bounds(case: str) -> None:
    attention, side = CASES[case]
    attention = scrambled(attention)
    bound = bound_attention(attention)
    assert bound.log10 is not None
    found = math.log10(steepest(attention, (side, side, attention.qkv.in_features)))
    assert found <= bound.log10 <= bound.details["paper_log10"]
    assert found > bound.log10 - 2  # no empty promise


def test_alpha_is_part_of_the_bound() -> None:
    attention, _ = CASES["windows"]
    attention = scrambled(attention)
    alpha = torch.tensor([0.1, 0.0, -2.0, 0.3, 0.1, 0.1], dtype=torch.float64)
    bound = bound_attention(attention, alpha).log10
    assert bound is not None
    assert math.log10(steepest(lambda x: attention(x) * alpha, (2, 2, 6))) <= bound
    wrong = bound_attention(attention, alpha.clamp(-0.3, 0.3)).log10
    assert wrong is not None
    assert wrong < bound


@pytest.mark.parametrize("case", CASES)
def test_our_theorem_is_never_weaker_than_the_papers(case: str) -> None:
    groups = heads_of(scrambled(CASES[case][0]))
    assert attention_bound(groups) <= paper_bound(groups)


def test_a_bound_from_fewer_tokens_is_violated() -> None:
    """The constants of a smaller window, or a bound of a single head where there are more, are found out."""
    attention, x = of_free_parts(query=1e-9, key=1e-9, value=1.0), value_worst()
    right = bound_attention(attention).log10
    found = math.log10(jacobian_norm(attention, x)[0])
    assert right is not None
    assert right - 0.01 < found <= right
    attention.window = 1
    wrong = bound_attention(attention).log10
    assert wrong is not None
    assert found > wrong + 0.25  # the root of four tokens is missing


# Each of the three constants of the theorem is reached. In these, queries, keys and values are channels of their own.


def of_free_parts(*, query: float, key: float, value: float, **settings: Any) -> WindowAttention:
    """One head on windows of four tokens; q, k and v are two channels each of x, times the factors."""
    config = SWIN.replace(num_heads=(1, 1, 1, 1), **settings)
    attention = WindowAttention(config, 0, 0).double()
    weight = torch.zeros(3, 6, 6, dtype=torch.float64)
    for part, factor in enumerate((query, key, value)):
        weight[part, :2, 2 * part : 2 * part + 2] = factor * torch.eye(2)
    with torch.no_grad():
        attention.qkv.weight.copy_(weight.flatten(0, 1))
        attention.qkv.bias.zero_()
        attention.proj.weight.copy_(torch.eye(6))
        attention.proj.bias.zero_()
    return attention


def tokens(query: list[list[float]], key: list[list[float]], value: list[list[float]]) -> Tensor:
    """The map (1, 2, 2, 6) of four tokens with these parts."""
    parts = [torch.tensor(part, dtype=torch.float64) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(1, 2, 2, 6)


ONE, ZERO, BACK = [1e12, 0.0], [0.0, 0.0], [-1e12, 0.0]


def query_worst() -> Tensor:
    """Undecided queries between two opposite keys with opposite values."""
    return tokens([ZERO] * 4, [ONE, ONE, BACK, BACK], [ONE, ONE, BACK, BACK])


def key_worst() -> Tensor:
    """All queries are undecided between two keys near zero, with opposite values, and shun the others."""
    return tokens([ONE] * 4, [ZERO, ZERO, BACK, BACK], [ONE, BACK, ONE, BACK])


def value_worst() -> Tensor:
    """All queries attend to the one token whose value is near zero."""
    return tokens([ONE] * 4, [ONE, BACK, BACK, BACK], [ZERO, ONE, ONE, ONE])


@pytest.mark.parametrize(
    ("factors", "x"),
    [
        ({"query": 1.0, "key": 1e-9, "value": 1e-9}, query_worst()),
        ({"query": 1e-9, "key": 1.0, "value": 1e-9}, key_worst()),
        ({"query": 1e-9, "key": 1e-9, "value": 1.0}, value_worst()),
    ],
)
def test_each_constant_of_the_theorem_is_the_least_possible(factors: dict[str, float], x: Tensor) -> None:
    attention = of_free_parts(**factors)
    bound = bound_attention(attention)
    assert bound.log10 is not None
    found = jacobian_norm(attention, x)[0]
    assert 0.99 <= found / 10**bound.log10 <= 1
    assert bound.details["paper_log10"] > bound.log10 + 0.5


# What is said to be not bounded grows without bound.


@pytest.mark.parametrize("settings", [{"value_norm": False}, {"attention": "dot", "value_norm": False}])
def test_what_is_not_bounded_grows_without_bound(settings: dict[str, Any]) -> None:
    attention = of_free_parts(query=1.0, key=1.0, value=1.0, **settings)
    bound = bound_attention(attention)
    assert bound.log10 is None
    assert bound.reason is not None
    assert "not Lipschitz" in bound.reason
    key = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]
    slopes = []
    for size in (1e2, 1e5, 1e8):
        value = [[size, 0.0], [size, 0.0], [-size, 0.0], [-size, 0.0]]
        slopes.append(jacobian_norm(attention, tokens([ZERO] * 4, key, value))[0])
    assert slopes[1] > 500 * slopes[0]
    assert slopes[2] > 500 * slopes[1]


def test_normalized_values_do_not_grow() -> None:
    attention = of_free_parts(query=1.0, key=1.0, value=1.0)
    near, far = (
        jacobian_norm(
            attention, tokens([ZERO] * 4, [[1.0, 0.0]] * 2 + [[-1.0, 0.0]] * 2, [[s, 0.0]] * 2 + [[-s, 0.0]] * 2)
        )
        for s in (1.0, 1e6)
    )
    assert far[0] == pytest.approx(near[0], rel=1e-3)


@pytest.mark.parametrize("settings", [{"value_norm": False}, {"attention": "dot", "value_norm": False}])
def test_attention_to_a_single_token_is_linear_whatever_its_kind(settings: dict[str, Any]) -> None:
    attention = scrambled(WindowAttention(SWIN.replace(**settings), 3, 0))
    bound = bound_attention(attention)
    assert bound.log10 is not None
    assert "paper_log10" not in bound.details
    assert steepest(attention, (1, 1, 48)) <= 10**bound.log10


# The refinement: how much of its attention a query can give to one key.


@pytest.mark.parametrize("tau", [0.05, 0.25, 1.0, 3.0, 50.0])
def test_no_query_gives_a_key_more_than_its_largest_share(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(1, 4, 4, dtype=torch.float64, generator=generator) * 2
    largest = largest_shares(torch.tensor([tau], dtype=torch.float64), bias)
    for _ in range(50):  # brute force, among extreme cosines too
        cosines = torch.rand(4, 4, dtype=torch.float64, generator=generator) * 2 - 1
        for scores in (cosines, cosines.sign()):
            assert (torch.softmax(tau * scores + bias, dim=-1) <= largest * (1 + 1e-12)).all()
    signs = 2 * torch.eye(4, dtype=torch.float64)[:, None] - 1  # for each key: 1 for it, -1 for the others
    attained = torch.softmax(tau * signs + bias, dim=-1).amax(dim=0)
    torch.testing.assert_close(attained, largest[0])


def test_the_shares_of_extreme_biases_are_numbers() -> None:
    bias = torch.tensor([[[0.0, -1e4], [1e4, 0.0]]], dtype=torch.float64)
    for tau in (1e-6, 1e6):
        shares = largest_shares(torch.tensor([tau], dtype=torch.float64), bias)
        assert shares.isfinite().all()
        assert shares[0].diagonal().tolist() == [1.0, 1.0 if tau > 1 else pytest.approx(0.0)]


def cool(**parts: float) -> WindowAttention:
    """One head with a small temperature and no position bias, for which the refinement matters."""
    attention = of_free_parts(temperature=0.25, epsilon=1.0, **parts)
    with torch.no_grad():
        attention.relative_position_bias_table.zero_()
    return attention


def test_an_adversary_does_not_exceed_the_refined_bound() -> None:
    """Gradient ascent on the norm of the Jacobian, along the direction that attains it."""
    attention = cool(query=1.0, key=1.0, value=1.0)
    bound = bound_attention(attention).log10
    assert bound is not None
    x = torch.randn(1, 2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    norms = []
    for _ in range(10):
        norm, direction = jacobian_norm(attention, x)
        norms.append(norm)
        x = x.detach().requires_grad_()
        image = attention(x)
        covector = torch.zeros_like(image, requires_grad=True)
        (pulled,) = torch.autograd.grad(image, x, covector, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, covector, direction, create_graph=True)
        (uphill,) = torch.autograd.grad(pushed.norm(), x)
        x = x + 0.2 * uphill / uphill.norm()
    assert norms[-1] > norms[0]
    assert max(norms) <= 10**bound
    assert max(norms) > 0.3 * 10**bound  # no empty promise


def test_a_share_that_is_too_small_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bound took all shares for 1/N, tokens that attend to one key would exceed it."""
    attention, x = of_free_parts(query=1e-9, key=1e-9, value=1.0), value_worst()
    found = jacobian_norm(attention, x)[0]
    monkeypatch.setattr(bounds_of_attention, "largest_shares", lambda tau, bias: torch.full_like(bias, 0.25))
    wrong = bound_attention(attention).log10
    assert wrong is not None
    assert found > 1.5 * 10**wrong
