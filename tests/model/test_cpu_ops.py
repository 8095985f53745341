"""Depthwise convolutions: the hand-written gradients are the gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipsformer.model import cpu_ops
from lipsformer.model.blocks import DepthwiseConv2d
from lipsformer.model.cpu_ops import by_maps, by_positions, depthwise_conv, weight_gradient


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


def by_maps_of_one_image(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_ops, "LARGE_IMAGE", 1)
        return by_maps(x, grad, kernel)


@pytest.mark.parametrize("gradient", [by_maps, by_maps_of_one_image, by_positions, weight_gradient])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (9, 2), (11, 12)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_every_way_to_the_gradient_of_the_weights(
    gradient: Callable[[Tensor, Tensor, int], Tensor], size: tuple[int, int], kernel: int
) -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(5, 6, *size, dtype=torch.float64) for _ in range(2))
    weight = torch.zeros(6, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=kernel // 2, groups=6), weight, grad)
    found = gradient(x, grad, kernel)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.stride() == weight.stride()  # or DistributedDataParallel warns


@pytest.mark.parametrize("side", [2, 8, 24, 46])
def test_gradients_have_the_strides_of_the_weights(side: int) -> None:
    layer = DepthwiseConv2d(32, 7)
    x = torch.randn(4, 32, side, side).contiguous(memory_format=torch.channels_last)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_has_the_gradients_of_its_output() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4, 5), (3, 1, 3, 3), (3,)))
    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    assert torch.autograd.gradcheck(depthwise_conv, inputs)


def test_is_used_while_training_alone() -> None:
    layer = DepthwiseConv2d(4, 7)
    x = torch.randn(1, 4, 8, 8)
    names = [type(layer.train(training)(x).grad_fn).__name__ for training in (True, False)]
    assert names == ["DepthwiseConvBackward", "ConvolutionBackward0"]


@pytest.mark.parametrize("side", [2, 8, 17])
def test_follows_autocast(side: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, 7)
    x = torch.randn(3, 4, side, side)
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
