"""Depthwise convolutions: the fast gradient is the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipsformer.depthwise import DepthwiseConv2d, PairwiseGradient


def gradients(layer: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=x.dtype).reshape(out.shape))
    assert x.grad is not None
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (8, 8), (3, 7), (9, 9)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_equals_torchs_convolution_and_its_gradients(size: tuple[int, int], kernel: int) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, kernel).double()
    torchs = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=6).double()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 6, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for found, expected in zip(gradients(ours, x), gradients(torchs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_is_used_for_small_maps_while_training_alone() -> None:
    layer = DepthwiseConv2d(4, 7)
    names = {
        (training, side): type(layer.train(training)(torch.randn(1, 4, side, side)).grad_fn).__name__
        for training in (True, False)
        for side in (8, 9)
    }
    used = f"{PairwiseGradient.__name__}Backward"
    assert names == {(True, 8): used} | dict.fromkeys([(True, 9), (False, 8), (False, 9)], "ConvolutionBackward0")


def test_follows_autocast() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, 7)
    x = torch.randn(3, 4, 8, 8)
    expected = gradients(layer, x)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, x)
    assert found[0].dtype == torch.bfloat16
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def test_frozen_inputs_and_weights_get_no_gradient() -> None:
    layer = DepthwiseConv2d(4, 3).requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
