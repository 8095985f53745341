"""Depthwise 7x7 convolutions on one CPU thread: all gradients, oneDNN's and ours, in interleaved rounds.

python benchmarks/depthwise/measure.py > benchmarks/depthwise/README.md
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lipsformer.model.cpu_ops import depthwise_conv

KERNEL, ROUNDS, CALLS = 7, 7, 5
SHAPES = (  # batch, channels, side
    *((64, 32 << stage, 16 >> stage) for stage in range(4)),  # lipsformer_nano
    *((16, 96 << stage, 56 >> stage) for stage in range(4)),  # lipsformer_swin_tiny
)
NOTE = """
Ours (`lipsformer/model/cpu_ops.py`) sums the bias gradient directly and computes the input gradient as a convolution
with flipped weights. The weight gradient is a depthwise convolution of the input's maps by those of the output's
gradient; on maps narrower than half the kernel it comes from pairs of positions."""


def milliseconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        function()
    return (time.process_time() - started) / CALLS * 1e3


def measure(batch: int, channels: int, side: int, dtype: torch.dtype) -> list[float]:
    """Milliseconds of the convolution, of oneDNN's gradients and of ours: medians over the rounds."""
    x, grad = (
        torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight, bias = torch.randn(channels, 1, KERNEL, KERNEL, dtype=dtype), torch.randn(channels, dtype=dtype)
    inputs = [part.requires_grad_() for part in (x, weight, bias)]

    def plain_conv() -> torch.Tensor:
        return F.conv2d(x, weight, bias, padding=KERNEL // 2, groups=channels)

    def gradients(out: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)

    ways: list[Callable[[], object]] = [
        plain_conv,
        gradients(plain_conv()),
        gradients(depthwise_conv(x, weight, bias)),
    ]
    for way in ways:
        way()
    rounds = [[milliseconds(way) for way in ways] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("# Gradients of a depthwise convolution on a CPU\n")
    print(f"CPU milliseconds for a {KERNEL}x{KERNEL} kernel on one thread: the convolution, and the gradients of its")
    print(
        f"input, weights and bias. Medians of {ROUNDS} interleaved rounds of {CALLS} calls; torch {torch.__version__},"
    )
    print(f"{os.cpu_count()} virtual cores.\n")
    print("    python benchmarks/depthwise/measure.py > benchmarks/depthwise/README.md\n")
    print("| maps | precision | convolution | gradients, oneDNN | gradients, ours | ours / oneDNN |")
    print("|---|---|---:|---:|---:|---:|")
    for batch, channels, side in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            forward, theirs, ours = measure(batch, channels, side, dtype)
            name = str(dtype).removeprefix("torch.")
            cells = f"{forward:.2f} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f}"
            print(f"| {batch} x {channels} x {side} x {side} | {name} | {cells} |")
    print(NOTE)


if __name__ == "__main__":
    main()
