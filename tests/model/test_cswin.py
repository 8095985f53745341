"""The CSwin form: equal to the formulas of CSwin and of LipsFormer, and with stripes that keep to themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lipsformer.model.attention import DotProductAttention
from lipsformer.model.blocks import conv_nhwc
from lipsformer.model.config import ModelConfig
from lipsformer.model.cswin import CrossShapedAttention, StripeAttention
from lipsformer.model.windows import join_heads, split_heads, window_partition, window_reverse
from tests.support.models.small_models import CSWIN, EQUAL, PLAIN_CSWIN, SEEN, disagreement, scrambled

LAYOUTS: dict[str, dict[str, Any]] = {
    "rows and columns of several widths": {},
    "every stage but the first attends everywhere": {"split_sizes": (4, 8, 7, 1)},
    "three-wide stripes and small patches": {"image_size": 48, "patch_size": 2, "split_sizes": (3, 4, 2, 7)},
    "a head for each pair of channels": {"num_heads": (4, 8, 16, 32)},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("config", [CSWIN, PLAIN_CSWIN], ids=["LipsFormer", "plain"])
def test_equals_the_formulas_written_out_again(config: ModelConfig, layout: dict[str, Any]) -> None:
    assert disagreement(scrambled(config.replace(**layout))) < EQUAL


def exchange_rows_and_columns(stripe: StripeAttention) -> None:
    stripe.height, stripe.width = stripe.width, stripe.height


def let_lepe_cross_the_stripes(stripe: StripeAttention) -> None:
    """LePE as a convolution of the whole map, in place of one inside each window."""

    def forward(qkv: Tensor) -> Tensor:
        _, rows, columns, channels = qkv.shape
        windows = window_partition(qkv, stripe.height, stripe.width)
        out = join_heads(stripe.similarity(*split_heads(windows, stripe.num_heads)))
        lepe = conv_nhwc(stripe.lepe, qkv[..., -(channels // 3) :])
        return window_reverse(out, stripe.height, stripe.width, rows, columns) + lepe

    stripe.forward = forward  # type: ignore[method-assign]


class Unscaled(DotProductAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().forward(q * q.shape[-1] ** 0.5, k, v, bias)


@pytest.mark.parametrize(
    "spoil",
    [
        exchange_rows_and_columns,
        let_lepe_cross_the_stripes,
        lambda stripe: torch.nn.init.zeros_(stripe.lepe.bias),
        lambda stripe: stripe.lepe.weight.copy_(stripe.lepe.weight.mT.clone()),
        lambda stripe: setattr(stripe, "similarity", Unscaled()),
    ],
    ids=["rows and columns exchanged", "LePE across stripes", "LePE without bias", "LePE turned", "no division"],
)
def test_the_comparison_sees_a_spoiled_stripe(spoil: Callable[[StripeAttention], object]) -> None:
    model = scrambled(PLAIN_CSWIN)
    unspoiled = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for stripe in [module for module in model.modules() if isinstance(module, StripeAttention)][:2]:
        with torch.no_grad():
            spoil(stripe)
    assert disagreement(model, unspoiled) > SEEN


def stripe_pair(config: ModelConfig) -> CrossShapedAttention:
    torch.manual_seed(0)
    layer = CrossShapedAttention(config, stage=1).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@pytest.mark.parametrize("config", [CSWIN, PLAIN_CSWIN], ids=["LipsFormer", "plain"])
def test_a_token_sees_its_rows_and_columns_only(config: ModelConfig) -> None:
    layer = stripe_pair(config)  # a map of 8 x 8, stripes two wide
    x = torch.randn(1, 8, 8, 16, dtype=torch.float64, requires_grad=True)
    qkv = torch.randn(1, 8, 8, 24, dtype=torch.float64, requires_grad=True)
    columns, rows = torch.zeros(2, 8, 8, dtype=torch.bool)
    columns[:, 4:6] = True
    rows[2:4, :] = True
    for stripe, expected in zip(layer.stripes, (columns, rows), strict=True):
        (seen,) = torch.autograd.grad(stripe(qkv)[0, 3, 5].sum(), qkv)
        assert torch.equal(seen[0].abs().sum(-1) > 0, expected)
    (seen,) = torch.autograd.grad(layer(x)[0, 3, 5].sum(), x)
    assert torch.equal(seen[0].abs().sum(-1) > 0, columns | rows)


@pytest.mark.parametrize("config", [CSWIN, PLAIN_CSWIN], ids=["LipsFormer", "plain"])
def test_gradients_are_exact(config: ModelConfig) -> None:
    layer = stripe_pair(config)
    x = torch.randn(1, 8, 8, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


@torch.no_grad()
def test_lepe_sees_the_values_as_they_are() -> None:
    """Ten times the values: with `value_norm` the attention stays, and what LePE adds is ten times as much."""
    stripe = stripe_pair(CSWIN.replace(epsilon=1e-24)).stripes[0]
    stripe.lepe.bias.zero_()
    qkv = torch.randn(1, 8, 8, 24, dtype=torch.float64)
    longer = torch.cat([qkv[..., :16], qkv[..., 16:] * 10], dim=-1)
    expected = conv_nhwc(stripe.lepe, window_partition(qkv[..., 16:] * 9, 8, 2).reshape(-1, 8, 2, 8)).flatten(1, 2)
    found = window_partition(stripe(longer) - stripe(qkv), 8, 2)
    torch.testing.assert_close(found, expected)
    stripe.lepe.weight.zero_()
    torch.testing.assert_close(stripe(longer), stripe(qkv))


def test_stripes_as_wide_as_the_map_become_one_window() -> None:
    shapes = [
        [(stripe.height, stripe.width) for stripe in module.stripes]
        for module in scrambled(CSWIN.replace(depths=(1, 1, 1, 1), split_sizes=(2, 8, 2, 1))).modules()
        if isinstance(module, CrossShapedAttention)
    ]
    assert shapes == [[(16, 2), (2, 16)], [(8, 8)], [(4, 2), (2, 4)], [(2, 2)]]
