"""Metrics of a step and of an epoch, and the running sums of the epoch that is under way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

__all__ = ["CURVE_POINTS", "EpochMetrics", "EpochSums", "StepMetrics"]

CURVE_POINTS = 20  # of the loss curve within an epoch


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimization step, summed over all processes.

    `epoch` and `step` count from 1, `step` over the whole training. `loss_sum` and `correct` are sums over the step's
    `images`. `stop` says that a process was asked to stop. The training loop adds the time of the whole step and of the
    wait for its images, in seconds, and `skipped`, the number of steps skipped so far. `distillation_sum` is the
    distillation loss before its weight in `loss_sum`; None without a teacher.
    """

    epoch: int
    step: int
    images: int
    loss_sum: float
    correct: float
    grad_norm: float
    learning_rate: float
    stop: bool = False
    seconds: float = 0.0
    data_seconds: float = 0.0
    skipped: int = 0
    distillation_sum: float | None = None

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite. Other steps are skipped: they leave the weights unchanged."""
        return math.isfinite(self.loss_sum + self.grad_norm)

    @property
    def loss(self) -> float | None:
        """Mean loss, or None for a skipped step."""
        return self.loss_sum / self.images if self.finite else None

    @property
    def top1(self) -> float | None:
        """Accuracy on the augmented images, or None for a skipped step."""
        return self.correct / self.images if self.finite else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One finished epoch: the keys and values of a line of metrics.jsonl.

    Training metrics are None where every step was skipped; `val_loss` is None where it is not finite. `epoch` counts
    from 1. `seconds` is the time of the whole epoch, `data_wait` the share of step time spent waiting for images.
    `train_loss` is the loss that is minimized; without a teacher there is no `train_distillation_loss`.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float | None
    train_top1: float | None
    train_distillation_loss: float | None = None  # older states lack it
    train_loss_curve: list[float | None]
    skipped_steps: int
    images_per_second: float | None
    data_wait: float | None
    val_loss: float | None
    val_top1: float
    val_top5: float
    val_images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the distillation loss if there is none."""
        data = dataclasses.asdict(self)
        if self.train_distillation_loss is None:
            del data["train_distillation_loss"]
        return data


class EpochSums:
    """Running sums over an epoch of `steps` steps. They are saved with the state, so that a resumed epoch is complete.

    The loss curve is the mean loss of each of `CURVE_POINTS` even slices of the epoch, or of each step where these are
    fewer.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.correct = 0.0
        self.skipped = 0
        self.distillation: float | None = None
        self.slices = [(0.0, 0)] * min(CURVE_POINTS, steps)  # loss and number of each slice's images
        self.images = 0  # since this process began or resumed the epoch, as are the seconds
        self.data_seconds = self.seconds = 0.0

    def add(self, step: StepMetrics) -> None:
        """Adds a step. Of a skipped one only the time and the count are added."""
        self.images += step.images
        self.data_seconds += step.data_seconds
        self.seconds += step.seconds
        if not step.finite:
            self.skipped += 1
            return
        point = (step.step - 1) % self.steps * len(self.slices) // self.steps
        total, count = self.slices[point]
        self.slices[point] = (total + step.loss_sum, count + step.images)
        self.correct += step.correct
        if step.distillation_sum is not None:
            self.distillation = (self.distillation or 0.0) + step.distillation_sum

    def means(self) -> dict[str, Any]:
        """The training metrics of `EpochMetrics`; None where no step counted."""
        loss, images = (sum(column) for column in zip(*self.slices, strict=True))
        return {
            "train_loss": loss / images if images else None,
            "train_top1": self.correct / images if images else None,
            "train_loss_curve": [round(total / count, 4) if count else None for total, count in self.slices],
            "train_distillation_loss": self.distillation / images if images and self.distillation is not None else None,
            "skipped_steps": self.skipped,
            "images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
            "data_wait": round(self.data_seconds / self.seconds, 4) if self.seconds else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON that `from_dict` restores exactly. Times are omitted: they belong to this process."""
        return {
            "steps": self.steps,
            "correct": self.correct,
            "skipped": self.skipped,
            "distillation": self.distillation,
            "slices": self.slices,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Restores sums from `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: if `data` is something else.
        """
        sums = cls(data["steps"])
        sums.correct, sums.skipped = data["correct"], data["skipped"]
        sums.distillation = data.get("distillation")  # older states lack it
        sums.slices = [(total, count) for total, count in data["slices"]]
        return sums
