"""Training operations tuned for a CPU, most with a hand-written gradient. Each has the plain formula's signature.

The layers choose them by `use_own_backward`, and compute the formula itself everywhere else. The values are the same up
to rounding.

oneDNN's gradients of the weights and the bias of a depthwise 7x7 convolution take ten to twenty times as long as the
convolution itself, a good part of a model's whole step. Three things help (benchmarks/depthwise/): the gradient of the
bias is a plain sum; that of the weights is a depthwise convolution too, by the map of the output's gradient; and on
maps narrower than the kernel it is one matrix product per channel over all pairs of positions, of which those the same
distance apart are then summed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = [
    "add_scaled",
    "center_affine",
    "convex_sum",
    "depthwise_conv",
    "kept_images",
    "l2_normalize",
    "pointwise_conv",
    "replace_images",
    "use_own_backward",
]

MOST_POSITIONS = 64  # beyond 8x8 maps the pairs of positions outweigh what is saved
LARGE_IMAGE = 2**16  # from this many numbers, a convolution per image costs less than laying out the batch for one


def use_own_backward(training: bool) -> bool:
    """Whether to compute by these functions: while training, except under torch.compile, which fuses the formulas."""
    return training and not torch.compiler.is_compiling()


def kept_images(keep: Tensor) -> Tensor | None:
    """The images (B',) of a batch whose branch is worth computing alone: those with a weight in `keep` (B, 1, ..., 1).

    None if no image is dropped, on a GPU, which would have to wait for the number, and under torch.compile. At least
    one image remains: all processes of a distributed training need a gradient of every weight.
    """
    if keep.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    kept = keep.flatten().nonzero().flatten()
    kept = kept if len(kept) else kept.new_zeros(1)
    return kept if len(kept) < len(keep) else None


def replace_images(x: Tensor, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """x (B, ...) with change(x[images]) in place of `images` (B',), in a third of autograd's passes over memory."""
    whole, part = SplitImages.apply(x, images)  # type: ignore[no-untyped-call]
    out: Tensor = JoinImages.apply(whole, images, change(part).to(x.dtype))  # type: ignore[no-untyped-call]
    return out


def l2_normalize(x: Tensor, epsilon: float, length: float = 1.0) -> Tensor:
    """length * x / sqrt(|x|**2 + epsilon) over the last dimension, in half the passes over memory of autograd."""
    out: Tensor = L2Normalize.apply(x, epsilon, length)  # type: ignore[no-untyped-call]
    return out


def center_affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) * weight + bias over the last dimension, in half the passes over memory that autograd would make.

    Under autocast the result is in its precision, as that of the layers between two norms.
    """
    out: Tensor = CenterAffine.apply(*autocast(x, weight, bias))  # type: ignore[no-untyped-call]
    return out


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """x + branch * scale, in half the passes over memory that autograd would make."""
    out: Tensor = AddScaled.apply(*autocast(x, branch, scale))  # type: ignore[no-untyped-call]
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


class SplitImages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(images)
        return x.view_as(x), x.index_select(0, images)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, part: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return grad.index_copy(0, images, part), None


class JoinImages(torch.autograd.Function):
    """Puts the changed images back. `SplitImages` replaces the gradient of the images that are overwritten here."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, images: Tensor, part: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return whole.index_copy(0, images, part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (images,) = ctx.saved_tensors
        return grad, None, grad.index_select(0, images)


class L2Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float, length: float) -> Tensor:
        factor = torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + epsilon) * length
        out = x * factor
        ctx.save_for_backward(out, factor)
        ctx.length = length
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out, factor = ctx.saved_tensors
        along = (grad * out).sum(dim=-1, keepdim=True)
        along *= ctx.length**-2
        return (grad - out * along).mul_(factor), None, None  # `addcmul` takes four times as long


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
        grad_x -= (grad @ weight / len(weight))[..., None]  # its mean; centering is its own transpose
        return grad_x, (grad * centered).sum_to_size(weight.shape), grad.sum_to_size(weight.shape)


class AddScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(branch, scale)
        return torch.addcmul(x, branch, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        branch, scale = ctx.saved_tensors
        return grad, grad * scale, (grad * branch).sum_to_size(scale.shape)


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

    Computed in the fastest of three ways for the shape and the precision.
    """
    _, channels, height, width = x.shape
    # The one case for which oneDNN has a kernel: findings/onednn_has_a_depthwise_weight_gradient_for_3x3_only.sh
    if not (kernel == 3 and height > 2 and x.dtype == torch.float32):
        if min(height, width) > kernel // 2:
            return by_maps(x, grad, kernel)
        if height * width <= MOST_POSITIONS:
            return by_positions(x, grad, kernel)
    shape = (channels, 1, kernel, kernel)
    gradient = conv2d_weight(x, shape, grad, padding=kernel // 2, groups=channels)  # type: ignore[no-untyped-call]
    # DistributedDataParallel warns of strides that differ from the weights', and oneDNN gives the 1 another one
    return gradient[:, 0, None]  # type: ignore[no-any-return]


def by_maps(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """`weight_gradient` as depthwise convolutions of the input maps, each by the map of its output's gradient."""
    batch, channels, height, width = x.shape
    if channels * height * width < LARGE_IMAGE:  # all images as one of many channels
        x, grad = x.reshape(1, -1, height, width), grad.reshape(1, -1, height, width)
    found = [
        F.conv2d(maps[None], kernels[:, None], padding=kernel // 2, groups=len(kernels))
        for maps, kernels in zip(x, grad, strict=True)
    ]
    total = torch.cat(found).reshape(batch, channels, kernel, kernel).sum(dim=0)
    return total.contiguous()[:, None]


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
