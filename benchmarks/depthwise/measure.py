"""Depthwise 7x7 convolutions on one CPU thread: the gradient of the weights, oneDNN's and ours, in interleaved rounds.

python benchmarks/depthwise/measure.py > benchmarks/depthwise/README.md
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lipsformer.depthwise import weight_gradient

BATCH, KERNEL, ROUNDS, CALLS = 64, 7, 7, 10
SHAPES = ((32, 16), (64, 8), (128, 4), (256, 2))  # channels, side: the stages of lipsformer_nano


def milliseconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - started) / CALLS * 1e3


def measure(channels: int, side: int, dtype: torch.dtype) -> list[float]:
    """Milliseconds of the convolution, of oneDNN's gradient of the weights and of ours: medians over the rounds."""
    x, grad = (
        torch.randn(BATCH, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.randn(channels, 1, KERNEL, KERNEL, dtype=dtype)
    padding = KERNEL // 2

    def backward() -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels, [False, True, False]
        )

    ways: list[Callable[[], object]] = [
        lambda: F.conv2d(x, weight, padding=padding, groups=channels),
        backward,
        lambda: weight_gradient(x, grad, KERNEL),
    ]
    for way in ways:
        way()
    rounds = [[milliseconds(way) for way in ways] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("# The gradient of depthwise weights on a CPU\n")
    print(
        f"Milliseconds for a batch of {BATCH} maps and a kernel of {KERNEL}x{KERNEL}, one thread, medians of {ROUNDS}"
    )
    print(f"interleaved rounds of {CALLS} calls; torch {torch.__version__}, {os.cpu_count()} virtual cores.\n")
    print("    python benchmarks/depthwise/measure.py > benchmarks/depthwise/README.md\n")
    print("| map | precision | convolution | gradient of the weights, oneDNN | ours | ours / oneDNN |")
    print("|---|---|---:|---:|---:|---:|")
    for channels, side in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            forward, theirs, ours = measure(channels, side, dtype)
            name = str(dtype).removeprefix("torch.")
            cells = f"{forward:.2f} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f}"
            print(f"| {channels} x {side} x {side} | {name} | {cells} |")
    print("\nTraining uses ours on maps of up to 8 x 8 (`lipsformer/depthwise.py`).")


if __name__ == "__main__":
    main()
