"""Norms of convolutions as linear maps of whole feature maps, with zero padding and stride.

The largest singular value of the kernel reshaped to a matrix is not a bound: an overlapping kernel of k x k taps reads
each pixel up to k * k times, so the true norm can be k times as large.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .power_iteration import power_iteration
from .spectral import spectral_norms

__all__ = ["convolution_norm_estimate", "convolution_norms"]

MOST_WORK = 2e9  # groups * size**3 up to which a map's own matrix is decomposed: about a second


def convolution_norms(layer: nn.Conv2d, height: int, width: int) -> Tensor:
    """Upper bounds (groups,), float64, of the norm of each group's map; without bias, the whole has their maximum.

    Both methods give true upper bounds, up to float64 rounding:

    * Small maps: the matrix of the map, by convolving every unit vector. Exact.
    * Large maps: that matrix is a part (a compression) of the periodic convolution's on a torus large enough that no
      kernel reaches around it. The periodic one is diagonal over frequencies, so its norm is the largest over them
      (Sedghi, Gupta and Long, ICLR 2019). A stride of s makes s * s phases of the input, each a channel of a
      convolution of stride 1. Too large by 1 to 4% for 3x3 kernels of stride 2, 3 to 4% for 7x7 ones on
      28x28 maps and 7 to 15% on 14x14; exact if kernels do not overlap.

    Args:
        layer: a zero-padded convolution without dilation.
        height, width: the size of its input.
    """
    weight = layer.weight.detach().double()
    inputs = weight.shape[1] * height * width  # of one group
    outputs = weight.shape[0] // layer.groups * _outputs(layer, 0, height) * _outputs(layer, 1, width)
    if layer.groups * max(inputs, outputs) ** 3 <= MOST_WORK:
        return spectral_norms(_matrices(layer, weight, height, width))
    return _torus_norms(layer, weight, height, width)


def convolution_norm_estimate(layer: nn.Conv2d, height: int, width: int) -> float:
    """Estimate the norm of `layer` without bias on maps of `height` x `width` by power iteration: from below."""
    weight = layer.weight.detach().double()

    def forward(x: Tensor) -> Tensor:
        return _convolve(layer, weight, x)

    def transpose(y: Tensor) -> Tensor:
        back: Tensor = conv2d_input(start.shape, weight, y, layer.stride, layer.padding, 1, layer.groups)  # type: ignore[no-untyped-call]
        return back

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, layer.in_channels, height, width, dtype=torch.float64, generator=generator)
    values, _ = power_iteration(forward, transpose, start)
    return float(values)


def _convolve(layer: nn.Conv2d, weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups)


def _outputs(layer: nn.Conv2d, axis: int, size: int) -> int:
    return (size + 2 * int(layer.padding[axis]) - layer.kernel_size[axis]) // layer.stride[axis] + 1


def _matrices(layer: nn.Conv2d, weight: Tensor, height: int, width: int) -> Tensor:
    """The map of each group as a matrix: (groups, inputs, outputs)."""
    channels = weight.shape[1]
    count = channels * height * width
    units = torch.eye(count, dtype=weight.dtype).reshape(count, 1, channels, height, width)
    images = _convolve(layer, weight, units.expand(-1, layer.groups, -1, -1, -1).flatten(1, 2))
    return images.reshape(count, layer.groups, -1).transpose(0, 1)


def _torus_norms(layer: nn.Conv2d, weight: Tensor, height: int, width: int) -> Tensor:
    """Norms (groups,) of the periodic convolutions that contain the groups of `layer`."""
    phases = weight.reshape(layer.groups, -1, *weight.shape[1:])  # (G, Cout, Cin, kh, kw)
    sides = []
    for axis, size in enumerate((height, width)):
        phases, side = _split_phases(phases, layer, axis, size)
        sides.append(side)
    taps = phases.permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 4)  # (G, Cout, Cin * s * s, dh, dw)
    columns = torch.fft.rfft(taps, n=sides[1])  # a real kernel has equal norms at opposite frequencies
    # one frequency of the width at a time: all at once take gigabytes for wide layers
    found = [spectral_norms(torch.fft.fft(column, n=sides[0]).permute(0, 3, 1, 2)) for column in columns.unbind(-1)]
    return torch.cat(found, dim=1).amax(dim=1)


def _split_phases(kernel: Tensor, layer: nn.Conv2d, axis: int, size: int) -> tuple[Tensor, int]:
    """Split the spatial dimension `axis` of a kernel into (taps, phases); also return the side of a large enough torus.

    Output o meets input i = s * o + t - p at tap t. With i = s * n + phase it meets position n = o + d of that phase,
    where t - p = s * d + phase: a convolution of stride 1. A tap is omitted if no output has a position that far
    away. On a torus of side M, output o also meets n' where n' - o differs from a d that is left by a multiple of M:
    there is none once M exceeds every |(n - o) - d|.
    """
    stride, padding, dim = layer.stride[axis], int(layer.padding[axis]), 3 + 2 * axis
    outputs, positions = _outputs(layer, axis, size), -(-size // stride)
    first = -padding // stride  # the smallest d: rounded down
    front = -padding - stride * first
    back = -(front + kernel.shape[dim]) % stride
    edges = (front, back) if dim == kernel.ndim - 1 else (0, 0, front, back)
    padded = F.pad(kernel, edges)
    kernel = padded.reshape(*padded.shape[:dim], -1, stride, *padded.shape[dim + 1 :])
    low, high = max(first, 1 - outputs), min(first + kernel.shape[dim], positions)  # d from low to below high
    kernel = kernel.narrow(dim, low - first, high - low)
    if (low, high) == (0, 1):  # kernels do not overlap: every frequency is the same
        return kernel, 1
    return kernel, max(positions - low, outputs + high - 1, positions, outputs)
