"""Training operations tuned for a CPU, most with a hand-written gradient. Each has the plain formula's signature.

The layers choose them by `use_own_backward`, and compute the formula itself everywhere else. The values are the same up
to rounding.

oneDNN's gradients of the weights and the bias of a depthwise 7x7 convolution take ten to twenty times as long as the
convolution itself, a good part of a model's whole step. Three things help (benchmarks/depthwise/): the gradient of the
bias is a plain sum; that of the weights is a depthwise convolution too, by the map of the output's gradient; and on
maps that are not too large, in bfloat16 it is one matrix product per channel over all pairs of positions or of columns,
of which those the same distance apart are then summed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = ["center_affine", "convex_sum", "depthwise_conv", "l2_normalize", "pointwise_conv", "use_own_backward"]

MOST_POSITIONS = 64  # beyond 8x8 maps the pairs of positions outweigh what is saved
MOST_COLUMNS = 16  # and the pairs of columns beyond this width


def use_own_backward(training: bool) -> bool:
    """Whether to compute by these functions: while training, except under torch.compile, which fuses the formulas."""
    return training and not torch.compiler.is_compiling()


def l2_normalize(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(|x|**2 + epsilon) over the last dimension, in half the passes over memory that autograd would make."""
    out: Tensor = L2Normalize.apply(x, epsilon)  # type: ignore[no-untyped-call]
    return out


def center_affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) * weight + bias over the last dimension, in half the passes over memory that autograd would make.

    Under autocast the result is in its precision, as that of the layers between two norms.
    """
    out: Tensor = CenterAffine.apply(*autocast(x, weight, bias))  # type: ignore[no-untyped-call]
    return out


def convex_sum(x: Tensor, branch: Tensor, alpha: Tensor) -> Tensor:
    """x + (branch - x) * alpha for a single alpha (1,), in half the passes over memory that autograd would make."""
    out: Tensor = ConvexSum.apply(*autocast(x, branch, alpha))  # type: ignore[no-untyped-call]
    return out


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the precision of autocast on the CPU, or as they are without it."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution by `weight` (C', C, 1, 1), as the matrix product that it is: (B, H, W, C) to (B, H, W, C').

    oneDNN's gradients of the convolution take longer.
    """
    return F.linear(x, weight.flatten(1), bias)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A zero-padded depthwise convolution by `weight` (C, 1, k, k), k odd: (B, C, H, W) to the same shape."""
    x, weight = autocast(x, weight)
    bias = None if bias is None else autocast(bias)[0]
    out: Tensor = DepthwiseConv.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class L2Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        inverse = torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + epsilon)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, inverse = ctx.saved_tensors
        along = (grad * unit).sum(dim=-1, keepdim=True)
        return (grad - unit * along).mul_(inverse), None  # `addcmul` takes four times as long


class CenterAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        ctx.save_for_backward(centered, weight)
        return torch.addcmul(bias, centered, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centered, weight = ctx.saved_tensors
        grad_x = grad * weight
        grad_x -= grad_x.mean(dim=-1, keepdim=True)  # centering is its own transpose
        return grad_x, (grad * centered).sum_to_size(weight.shape), grad.sum_to_size(weight.shape)


class ConvexSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, alpha: Tensor) -> Tensor:
        difference = branch - x
        ctx.save_for_backward(difference, alpha)
        return torch.addcmul(x, difference, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        difference, alpha = ctx.saved_tensors
        grad_branch = grad * alpha
        return grad - grad_branch, grad_branch, (grad * difference).sum().reshape(1)


class DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        kernel = weight.shape[-1]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            F.conv2d(grad, weight.flip(2, 3), padding=kernel // 2, groups=len(weight)) if needs_x else None,
            weight_gradient(x, grad, kernel) if needs_weight else None,
            grad.sum(dim=(0, 2, 3)) if needs_bias else None,
        )


def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Gradient (C, 1, kernel, kernel) of a depthwise convolution's weights, of input and output gradient (B, C, H, W).

    Computed in the fastest of four ways for the shape and the precision.
    """
    _, channels, height, width = x.shape
    small = height * width <= MOST_POSITIONS
    if x.dtype == torch.bfloat16:
        if small:
            return by_positions(x, grad, kernel)
        if width <= MOST_COLUMNS:
            return by_columns(x, grad, kernel)
        x, grad = x.float(), grad.float()  # convolutions take half as long again in bfloat16
    # The one case for which oneDNN has a kernel: findings/onednn_has_a_depthwise_weight_gradient_for_3x3_only.sh
    if not (kernel == 3 and height > 2 and x.dtype == torch.float32):
        if min(height, width) > kernel // 2:
            return by_maps(x, grad, kernel)
        if small:
            return by_positions(x, grad, kernel)
    shape = (channels, 1, kernel, kernel)
    gradient = conv2d_weight(x, shape, grad, padding=kernel // 2, groups=channels)  # type: ignore[no-untyped-call]
    # DistributedDataParallel warns of strides that differ from the weights', and oneDNN gives the 1 another one
    return gradient[:, 0, None]  # type: ignore[no-any-return]


def by_maps(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """`weight_gradient` as one depthwise convolution of all input maps, each by the map of its output's gradient."""
    batch, channels, height, width = x.shape
    maps, kernels = x.reshape(1, -1, height, width), grad.reshape(-1, 1, height, width)
    found = F.conv2d(maps, kernels, padding=kernel // 2, groups=len(kernels))  # (1, B * C, k, k)
    return found.reshape(batch, channels, kernel, kernel).sum(dim=0)[:, None]


def by_columns(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """`weight_gradient` by pairs of an output's and an input's column, for each distance between their rows."""
    channels, width = x.shape[1], x.shape[3]
    padding = kernel // 2
    padded = F.pad(x.permute(1, 0, 2, 3), (0, 0, padding, padding))  # (C, B, H + 2 * padding, W)
    inputs = padded.unfold(2, kernel, 1).transpose(-1, -2).reshape(channels, -1, kernel * width)  # (C, B * H, k * W)
    outputs = grad.permute(1, 3, 0, 2).reshape(channels, width, -1).contiguous()  # (C, W, B * H)
    pairs = F.pad((outputs @ inputs).reshape(channels, width, kernel, width), (padding, padding))
    # the k columns around each output's own: diagonals of (W, W + 2 * padding)
    channel, column, row, _ = pairs.stride()
    diagonals = pairs.as_strided((channels, kernel, kernel, width), (channel, row, 1, column + 1))
    return diagonals.sum(dim=-1)[:, None]


def by_positions(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """`weight_gradient` by pairs of an output's and an input's position."""
    _, channels, height, width = x.shape
    outputs = grad.permute(1, 2, 3, 0).reshape(channels, height * width, -1).contiguous()
    inputs = x.permute(1, 0, 2, 3).reshape(channels, -1, height * width).contiguous()
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
