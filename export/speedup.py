"""How much faster a bundle's file runs than another one, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipsformer.inference.runtimes import Pixels, Runtime
from lipsformer.system.console import say, track
from lipsformer.system.hardware import bf16_instructions, cores, cpu_name

__all__ = ["measure_speedup"]

ROUNDS = 7


def measure_speedup(runtime: Runtime, baseline: Runtime, photos: Pixels, batches: Sequence[int]) -> dict[str, Any]:
    """The speedup of `runtime` over `baseline` for the manifest: by batch size, and on what CPU.

    Each round calls both once with the same images, so that other load on the machine affects them alike. A ratio is
    the median over the rounds.

    Args:
        runtime: the faster one, it is hoped.
        baseline: what it is compared with.
        photos: (N, S, S, 3), repeated to fill a batch.
        batches: batch sizes.
    """
    ratios = {}
    with track("speed of bf16", ROUNDS * len(batches)) as advance:
        for batch in batches:
            pixels = photos[np.arange(batch) % len(photos)]
            rounds = []
            for number in range(ROUNDS + 1):
                rounds.append(_seconds(baseline, pixels) / _seconds(runtime, pixels))
                advance(min(number, 1), f"batch {batch}")
            ratios[str(batch)] = statistics.median(rounds[1:])  # the first is a warm-up
    shown = ", ".join(f"{ratio:.2f} at batch {batch}" for batch, ratio in ratios.items())
    say(f"speed of bf16, as a multiple of fp32's in ONNX Runtime: {shown}")
    return {"cpu": cpu_name(), "instructions": bf16_instructions(), "threads": cores(), "ratios": ratios}


def _seconds(runtime: Runtime, pixels: Pixels) -> float:
    started = time.perf_counter()
    runtime.infer(pixels)
    return time.perf_counter() - started
