"""The path of L2 penalties, from strong to weak, and the choice of the best one on held-out samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F

from .head import Head, Samples, fit_head
from .samples import Division

__all__ = ["DEFAULT_PENALTY", "PENALTIES", "PathPoint", "best_point", "measure", "penalty_path"]

PENALTIES = tuple(round(10.0 ** (-power / 2), 6) for power in range(11))  # 1 to 1e-5, of standardized features
DEFAULT_PENALTY = 0.01  # if nothing can be held out
LEAST_FALL = 1e-3  # nats; with less, images that are easily separated would lead to ever weaker penalties
# Enough to compare penalties: on fruit, held-out losses are within 1e-3 nats of the converged ones, in half the time.
LARGEST_GRADIENT = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathPoint:
    """One penalty: a line of the probe's metrics.jsonl.

    Losses are weighted mean cross entropies in nats, without label smoothing; with several divisions, means over them.
    """

    penalty: float
    train_loss: float
    train_top1: float
    held_out_loss: float
    held_out_top1: float
    iterations: int
    converged: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def measure(head: Head, samples: Samples) -> tuple[float, float]:
    """Weighted sums of the cross entropy and of the correct predictions: means if the weights sum to 1."""
    logits = head.logits(samples.features)
    losses = F.cross_entropy(logits, samples.labels, reduction="none")
    correct = (logits.argmax(dim=1) == samples.labels).double()
    return float(losses @ samples.weights), float(correct @ samples.weights)


def penalty_path(
    divisions: Sequence[Division], label_smoothing: float, after_point: Callable[[PathPoint], None]
) -> list[PathPoint]:
    """Fits a head for each penalty and division, each from the one before. Ends once the held-out loss falls no more.

    `after_point` receives each point when it is done.
    """
    heads: list[Head | None] = [None] * len(divisions)
    points: list[PathPoint] = []
    for penalty in PENALTIES:
        started = time.perf_counter()
        fits = [
            fit_head(
                division.fitted,
                penalty,
                label_smoothing=label_smoothing,
                start=head,
                largest_gradient=LARGEST_GRADIENT,
            )
            for division, head in zip(divisions, heads, strict=True)
        ]
        fitted, held_out = (
            [sum(values) for values in zip(*results, strict=True)]
            for results in (
                [measure(fit, division.fitted) for fit, division in zip(fits, divisions, strict=True)],
                [measure(fit, division.held_out) for fit, division in zip(fits, divisions, strict=True)],
            )
        )
        points.append(
            PathPoint(
                penalty=penalty,
                train_loss=fitted[0] / len(fits),
                train_top1=fitted[1] / len(fits),
                held_out_loss=held_out[0],
                held_out_top1=held_out[1],
                iterations=sum(fit.iterations for fit in fits),
                converged=all(fit.converged for fit in fits),
                seconds=round(time.perf_counter() - started, 2),
            )
        )
        after_point(points[-1])
        if len(points) > 1 and points[-1].held_out_loss > points[-2].held_out_loss - LEAST_FALL:
            break
        heads = list(fits)
    return points


def best_point(points: Sequence[PathPoint]) -> PathPoint:
    """The point with the lowest held-out loss; of equal ones, the strongest penalty."""
    return min(points, key=lambda point: point.held_out_loss)
