"""Validation of the averaged weights, shared by the processes of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsformer.evaluation.calibration.temperature import fit_temperature
from lipsformer.evaluation.predictions import UNREAD, Predictions
from lipsformer.train.data.dataset import Batch, ValidationLoader

from .loop import TrainContext

__all__ = ["Validation", "validate"]


class Validation(NamedTuple):
    """The predictions for all images, and the temperature that calibrates their scores."""

    predictions: Predictions
    temperature: float


def _total_of(context: TrainContext) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The sum of an array over the processes of a training."""
    distributed = context.distributed

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return distributed.all_reduce(torch.from_numpy(values).to(distributed.device)).cpu().numpy()

    return total


@torch.inference_mode()
def validate(
    model: Callable[[Tensor], Tensor],
    batches: ValidationLoader,
    labels: NDArray[np.int64],
    context: TrainContext,
    after_batch: Callable[[Batch, int, int], None],
) -> Validation:
    """Runs `model` (in eval mode, normalized images to logits) on all images.

    Each process runs its share, so every image counts once. Precision is full, as in `lipsformer eval`, so that
    evaluating a checkpoint reproduces its metrics. `labels` (N,) are those of the whole split. `after_batch` receives
    each batch, its number from 1, and the number of batches.
    """
    found = np.zeros((5, len(labels)))  # read, predicted, rank, loss, confidence; exact in float64
    own, own_logits = [np.zeros(0, np.int64)], [np.zeros((0, context.augmentation.classes), np.float32)]
    for done, batch in enumerate(batches, start=1):
        after_batch(batch, done, len(batches))
        if not len(batch.labels):
            continue
        logits = model(context.normalize(batch.pixels.to(context.distributed.device, non_blocking=True)))
        at = batch.labels.numpy()
        own.append(at)
        own_logits.append(logits.float().cpu().numpy())
        outcomes = Predictions.of(logits.double().cpu().numpy(), labels[at])
        found[:, at] = np.ones(len(at)), outcomes.predicted, outcomes.rank, outcomes.loss, outcomes.confidence
    sum_over_processes = _total_of(context)
    positions = np.concatenate(own)
    temperature = fit_temperature(
        np.concatenate(own_logits), labels[positions], sum_over_processes, positions=positions
    )
    total = sum_over_processes(found)
    predictions = Predictions(
        labels=labels,
        predicted=np.where(total[0] > 0, total[1], UNREAD).astype(np.int64),
        rank=total[2].astype(np.int64),
        loss=total[3],
        confidence=total[4],
        classes=context.augmentation.classes,
    )
    return Validation(predictions, temperature)
