"""Depthwise convolutions whose weights train fast on a CPU.

oneDNN's gradient of the weights of a depthwise 7x7 convolution takes many times as long as the convolution itself, and
on small maps a good part of a small model's whole step. Where a map is small enough to correlate every pair of its
positions, two matrix products give the same gradient several times faster (benchmarks/depthwise/).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

__all__ = ["DepthwiseConv2d"]

MOST_POSITIONS = 64  # beyond 8x8 maps the pairs of positions outweigh what is saved


class DepthwiseConv2d(nn.Conv2d):
    """One `kernel_size` x `kernel_size` filter for each of `dim` channels, zero-padded: (B, C, H, W) to the same shape.

    The same as `nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)`, gradients included.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        pairwise = self.training and x.device.type == "cpu" and x.shape[2] * x.shape[3] <= MOST_POSITIONS
        if not pairwise:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        out: Tensor = PairwiseGradient.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out


class PairwiseGradient(torch.autograd.Function):
    """A depthwise convolution with the gradient of its weights by pairs of positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        padding = weight.shape[-1] // 2
        return (
            conv2d_input(x.shape, weight, grad, padding=padding, groups=len(weight)) if needs_x else None,  # type: ignore[no-untyped-call]
            weight_gradient(x, grad, weight.shape[-1]) if needs_weight else None,
            grad.sum(dim=(0, 2, 3)) if needs_bias else None,
        )


def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Gradient (C, 1, kernel, kernel) of a depthwise convolution's weights, of input and output gradient (B, C, H, W).

    All pairs of an output and an input position are summed over the batch in one matrix product for each channel;
    then the pairs that are the same distance apart are summed.
    """
    _, channels, height, width = x.shape
    outputs = grad.permute(1, 2, 3, 0).reshape(channels, height * width, -1)
    inputs = x.permute(1, 0, 2, 3).reshape(channels, -1, height * width)
    pairs = (outputs @ inputs).reshape(channels, -1)  # (C, H * W * H * W)
    offsets = pairs @ pair_offsets(height, width, kernel).to(pairs.dtype)
    return offsets.reshape(channels, 1, kernel, kernel)


@functools.cache
def pair_offsets(height: int, width: int, kernel: int) -> Tensor:
    """For each pair of an output and an input position, 1 at the weight that joins them: (H * W * H * W, kernel**2)."""
    rows, columns = torch.arange(height), torch.arange(width)
    y, x = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    down = y[None, :] - y[:, None] + kernel // 2
    right = x[None, :] - x[:, None] + kernel // 2
    joined = (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    selection = torch.zeros(joined.numel(), kernel**2)
    (pairs,) = joined.flatten().nonzero(as_tuple=True)
    selection[pairs, (down * kernel + right).flatten()[pairs]] = 1.0
    return selection
