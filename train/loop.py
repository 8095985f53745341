"""The training loop: forward, backward, step, average; after each epoch validate the averaged weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from lipsformer import console
from lipsformer.errors import LipsFormerError
from lipsformer.normalise import Normalise

from .data import Batch
from .draws import Purpose, seed_torch
from .optimisation import learning_rate
from .recipe import Recipe
from .state import TrainingState

__all__ = ["CURVE_POINTS", "DivergedError", "Validation", "train_epoch", "validate"]

MAX_SKIPPED_IN_A_ROW = 20
CURVE_POINTS = 20  # of the loss curve within an epoch


class DivergedError(LipsFormerError):
    """The loss or its gradient was not finite for 20 steps in a row.

    `step` is the first of these, counted from 0; `record` is the loss curve of the epoch that was not finished and
    the number of its steps that were skipped.
    """

    def __init__(self, step: int, record: dict[str, Any]) -> None:
        self.step = step
        self.record = record
        super().__init__(
            f"step {step + MAX_SKIPPED_IN_A_ROW}: the loss or its gradient was not finite for {MAX_SKIPPED_IN_A_ROW} "
            "steps in a row; the checkpoints of earlier epochs are intact: lower the learning rate "
            "(--set learning_rate=...) and train again"
        )


class LossCurve:
    """Mean training loss of each of `CURVE_POINTS` even slices of an epoch, or of each step where these are fewer."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.sums = [(0.0, 0)] * min(CURVE_POINTS, steps)  # of the losses of each slice's images, and their number

    def add(self, step: int, loss: float | None, images: int) -> None:
        """Takes in step `step` of the epoch, from 0; `loss` is nothing if it was skipped."""
        if loss is not None:
            point = step * len(self.sums) // self.steps
            total, count = self.sums[point]
            self.sums[point] = (total + loss * images, count + images)

    def means(self) -> list[float | None]:
        """The means, to four decimals; nothing for a slice that was not reached, or whose steps were all skipped."""
        return [round(total / count, 4) if count else None for total, count in self.sums]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Mean cross entropy, share of images whose top class is right, and counts (K, K): rows true, columns predicted."""

    loss: float
    top1: float
    confusion: Tensor


def train_epoch(
    state: TrainingState, batches: Iterator[Batch], normalise: Normalise, recipe: Recipe, steps: int
) -> dict[str, Any]:
    """Trains `state` in place for `steps` steps and returns the epoch's record, the validation's part left out.

    A step whose loss or gradient is not finite leaves the weights as they are, and is counted.

    Raises:
        DivergedError: after 20 such steps in a row.
    """
    device = normalise.offset.device
    total = steps * recipe.epochs
    loss_mean, top1_mean = MeanMetric().to(device), MeanMetric().to(device)
    curve = LossCurve(steps)
    seen = skipped = 0
    started = time.perf_counter()
    state.model.train()
    with console.track(f"epoch {state.epoch + 1}/{recipe.epochs}", steps) as advance:
        for index in range(steps):
            batch = next(batches)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(state.step, total, recipe.learning_rate)
            seed_torch(recipe.seed, Purpose.STEP, state.step)
            result = _step(state, batch, normalise, recipe)
            state.step += 1
            seen += len(batch.labels)
            curve.add(index, None if result is None else float(result[0]), len(batch.labels))
            if result is None:
                note = "skipped"
                skipped += 1
                state.skipped_in_a_row += 1
                if state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                    record = {"train_loss_curve": curve.means(), "skipped_steps": skipped}
                    raise DivergedError(state.step - MAX_SKIPPED_IN_A_ROW, record)
            else:
                note = f"loss {float(result[0]):.3f}"
                state.skipped_in_a_row = 0
                loss_mean.update(result[0], len(batch.labels))
                top1_mean.update(result[1], len(batch.labels))
            advance(1, f"{note}  {seen / (time.perf_counter() - started):.0f} images/s")
    seconds = time.perf_counter() - started
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "train_loss": float(loss_mean.compute()) if skipped < steps else None,
        "train_top1": float(top1_mean.compute()) if skipped < steps else None,
        "train_loss_curve": curve.means(),
        "skipped_steps": skipped,
        "images_per_second": round(seen / seconds, 1),
        "seconds": round(seconds, 2),
    }


def _step(state: TrainingState, batch: Batch, normalise: Normalise, recipe: Recipe) -> tuple[Tensor, Tensor] | None:
    """One optimisation step; returns loss and top-1 accuracy of the batch, or nothing if the step was skipped."""
    device = normalise.offset.device
    labels = batch.labels.to(device, non_blocking=True)
    images = normalise(batch.pixels.to(device, non_blocking=True))
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.autocasts(device.type)):
        logits = state.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
    if not torch.isfinite(loss.detach() + norm):
        return None
    state.optimizer.step()
    state.average.update_parameters(state.model)
    return loss.detach(), (logits.detach().argmax(dim=1) == labels).float().mean()


@torch.inference_mode()
def validate(
    model: Callable[[Tensor], Tensor], batches: Iterable[Batch], normalise: Normalise, classes: int
) -> Validation:
    """Runs `model` (in eval mode, normalised images to logits) on `batches`."""
    device = normalise.offset.device
    loss_mean = MeanMetric().to(device)
    confusion = MulticlassConfusionMatrix(classes).to(device)
    for batch in batches:
        labels = batch.labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(normalise(batch.pixels.to(device, non_blocking=True)))
            loss = F.cross_entropy(logits, labels)
        loss_mean.update(loss, len(labels))
        confusion.update(logits, labels)
    counts: Tensor = confusion.compute().cpu()
    return Validation(loss=float(loss_mean.compute()), top1=float(counts.trace() / counts.sum()), confusion=counts)
