"""Accuracy of any model on labelled images, through the same path that predictions take."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .console import track
from .datasets import Split
from .machine import cores
from .prediction import Predictor
from .runtimes import Pixels

__all__ = ["Evaluation", "evaluate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found: shares of images whose class was the first, or among the first five, guesses."""

    split: str
    images: int
    top1: float
    top5: float
    images_per_second: float
    provider: str


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Runs `predictor` on every image of `split`; images per second include decoding.

    Raises:
        InputError: if an image cannot be read; the message names it.
    """
    started = time.perf_counter()
    top1 = top5 = 0
    with track("eval", len(split)) as advance:
        position = 0
        for pixels in _prepared(predictor, split):
            labels = split.labels[position : position + len(pixels)]
            ranked = np.argsort(-predictor.runtime.infer(pixels), axis=1, kind="stable")
            hits = ranked == labels[:, None]
            top1 += int(hits[:, :1].sum())
            top5 += int(hits[:, :5].sum())
            position += len(pixels)
            advance(len(pixels), f"top-1 {top1 / position:.1%}")
    seconds = time.perf_counter() - started
    return Evaluation(
        split=split.name,
        images=len(split),
        top1=top1 / len(split),
        top5=top5 / len(split),
        images_per_second=len(split) / seconds,
        provider=predictor.runtime.provider,
    )


def _prepared(predictor: Predictor, split: Split) -> Iterator[Pixels]:
    """Batches of network input, decoded in threads one batch ahead of the one in use."""

    def prepare(index: int) -> Pixels:
        return predictor.prepare(split.open(index))

    with ThreadPoolExecutor(cores()) as pool:
        remaining = iter(range(len(split)))
        ahead = [pool.submit(prepare, index) for index in itertools.islice(remaining, predictor.max_batch)]
        while ahead:
            current = ahead
            ahead = [pool.submit(prepare, index) for index in itertools.islice(remaining, predictor.max_batch)]
            yield np.stack([future.result() for future in current])
