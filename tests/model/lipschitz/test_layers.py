"""Norms of linear maps against their own matrices, and the slopes of norms and GELU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipsformer.model.lipschitz import convolution as convolution_module
from lipsformer.model.lipschitz.bounds import GELU_SLOPE, bound_layer
from lipsformer.model.lipschitz.convolution import convolution_norm_estimate, convolution_norms
from lipsformer.model.lipschitz.power_iteration import power_iteration
from lipsformer.model.lipschitz.spectral import spectral_norm, spectral_norms
from lipsformer.model.norm import CenterNorm
from tests.model.lipschitz.slopes import jacobian, steepest

NEAR = 1e-8  # relative; bounds are widened by 1e-9 of a decimal logarithm

# in, out, kernel, stride, padding, groups, height, width
CONVOLUTIONS = [
    (3, 8, 7, 4, 3, 1, 16, 16),  # an overlapping embedding
    (3, 6, 3, 2, 1, 1, 12, 12),
    (4, 8, 3, 2, 1, 1, 6, 6),  # a merging
    (4, 8, 3, 2, 1, 1, 9, 6),
    (6, 6, 7, 1, 3, 6, 8, 8),  # a branch
    (6, 6, 7, 1, 3, 6, 2, 2),  # a map smaller than the kernel
    (6, 6, 3, 1, 1, 6, 8, 2),  # LePE in a stripe
    (3, 8, 4, 4, 0, 1, 16, 16),  # patches
    (4, 5, 1, 1, 0, 1, 5, 5),
    (3, 5, 5, 3, 1, 1, 11, 10),
    (2, 3, 2, 3, 0, 1, 9, 9),  # with gaps
    (2, 3, 5, 2, 1, 1, 3, 20),
    (4, 6, 3, 2, 1, 2, 6, 6),
    (2, 2, 3, 1, 2, 1, 4, 4),  # a map that grows
]


def convolution(case: tuple[int, ...], *, positive: bool = False) -> nn.Conv2d:
    torch.manual_seed(sum(case))
    inputs, outputs, kernel, stride, padding, groups, _, _ = case
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups).double()
    with torch.no_grad():
        layer.weight.abs_() if positive else layer.weight.normal_()
    return layer


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_bounded_as_the_map_that_it_is(
    case: tuple[int, ...], positive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, (inputs, _, kernel, stride, _, _, height, width) = convolution(case, positive=positive), case
    true = spectral_norm(jacobian(layer, (inputs, height, width)))
    assert float(convolution_norms(layer, height, width).max()) == pytest.approx(true, rel=NEAR)
    estimate = convolution_norm_estimate(layer, height, width)
    assert 0.95 * true <= estimate <= true * (1 + NEAR)
    monkeypatch.setattr(convolution_module, "MOST_WORK", 0)  # as for large maps
    bound = float(convolution_norms(layer, height, width).max())
    assert bound >= true * (1 - NEAR)
    if kernel <= stride:
        assert bound == pytest.approx(true, rel=NEAR)


@pytest.mark.parametrize("case", [(4, 4, 7, 1, 3, 4, 24, 24), (2, 8, 7, 4, 3, 1, 28, 28), (2, 4, 3, 2, 1, 1, 20, 20)])
def test_the_bound_of_a_large_map_is_nearly_its_norm(case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (height, width) = convolution(case, positive=True), case[-2:]
    true = float(convolution_norms(layer, height, width).max())
    monkeypatch.setattr(convolution_module, "MOST_WORK", 0)
    assert true * (1 - NEAR) <= float(convolution_norms(layer, height, width).max()) <= true * 1.08


@pytest.mark.parametrize("case", [CONVOLUTIONS[0], CONVOLUTIONS[2], CONVOLUTIONS[4]])
def test_the_reshaped_kernel_is_no_bound(case: tuple[int, ...]) -> None:
    layer = convolution(case, positive=True)
    true = spectral_norm(jacobian(layer, (case[0], *case[-2:])))
    assert true > 1.2 * spectral_norm(layer.weight.flatten(1))


def test_each_channel_of_a_depthwise_convolution_has_its_own_norm() -> None:
    layer = convolution((5, 5, 3, 1, 1, 5, 6, 4))
    with torch.no_grad():
        layer.weight[2] = 0.0
    norms = convolution_norms(layer, 6, 4)
    for channel, weight in enumerate(layer.weight.detach()):
        alone = jacobian(lambda x, weight=weight: F.conv2d(x, weight[None], padding=1), (1, 6, 4))
        assert float(norms[channel]) == pytest.approx(spectral_norm(alone), rel=NEAR)


@pytest.mark.parametrize("dim", [2, 7, 64])
def test_the_bound_of_center_norm_is_its_norm(dim: int) -> None:
    torch.manual_seed(dim)
    layer = CenterNorm(dim).double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    bound = 10 ** (bound_layer(layer, "norm").log10 or 0.0)
    assert bound == pytest.approx(spectral_norm(jacobian(layer, (dim,))), rel=NEAR)
    assert bound <= dim / (dim - 1) * float(layer.weight.detach().abs().max()) * (1 + NEAR)


def test_layer_norm_is_as_steep_as_its_bound_at_constant_inputs_and_nowhere_steeper() -> None:
    torch.manual_seed(0)
    layer = nn.LayerNorm(6).double()
    with torch.no_grad():
        layer.weight.normal_()
    bound = 10 ** (bound_layer(layer, "norm").log10 or 0.0)
    found = steepest(layer, (6,))
    assert 0.999 * bound <= found <= bound
    assert found > 100 * steepest(CenterNorm(6).double(), (6,))


def test_the_slope_of_gelu() -> None:
    x = torch.linspace(-10, 10, 2_000_001, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(F.gelu(x).sum(), x)
    assert float(slopes.abs().max()) == pytest.approx(GELU_SLOPE, rel=1e-10)
    assert float(slopes.abs().max()) <= GELU_SLOPE * (1 + 1e-15)
    assert float(x.detach()[slopes.argmax()]) == pytest.approx(math.sqrt(2), abs=1e-4)


def test_power_iteration_finds_norms_from_below_and_each_of_a_batch() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(5, 7, 4, dtype=torch.float64)
    matrices[3] = 0.0
    start = torch.randn(5, 4, 1, dtype=torch.float64)
    values, vectors = power_iteration(lambda v: matrices @ v, lambda u: matrices.mT @ u, start, tolerance=1e-12)
    torch.testing.assert_close(values, spectral_norms(matrices), rtol=1e-6, atol=0)
    early, _ = power_iteration(lambda v: matrices @ v, lambda u: matrices.mT @ u, start, max_steps=2)
    assert bool((early <= values).all())
    assert float(values[3]) == 0.0
    assert bool(vectors.isfinite().all())
