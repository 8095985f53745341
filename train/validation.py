"""What the averaged weights answer to the validation images, shared by the processes of a training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsformer.evaluation.predictions import UNREAD, Predictions
from lipsformer.train.data.dataset import Batch, ValidationLoader

from .loop import Setting

__all__ = ["validate"]


@torch.inference_mode()
def validate(
    model: Callable[[Tensor], Tensor],
    batches: ValidationLoader,
    labels: NDArray[np.int64],
    setting: Setting,
    after_batch: Callable[[Batch, int, int], None],
) -> Predictions:
    """Runs `model` (in eval mode, normalized images to logits) on this process's share; the outcomes of all images.

    Every image is looked at by one process, and so counts once. In full precision, as `lipsformer eval` does it,
    so that a checkpoint's figures are those that it gives again. `labels` (N,) are those of the whole split;
    `after_batch` gets each batch, its number from 1, and how many there are.
    """
    classes = setting.augmentation.classes
    found = np.zeros((5, len(labels)))  # read, predicted, rank, loss, confidence; exact in float64
    for done, batch in enumerate(batches, start=1):
        after_batch(batch, done, len(batches))
        if not len(batch.labels):
            continue
        logits = model(setting.normalize(batch.pixels.to(setting.distributed.device, non_blocking=True)))
        at = batch.labels.numpy()
        outcomes = Predictions.of(logits.double().cpu().numpy(), labels[at])
        found[:, at] = np.ones(len(at)), outcomes.predicted, outcomes.rank, outcomes.loss, outcomes.confidence
    total = setting.distributed.all_reduce(torch.from_numpy(found).to(setting.distributed.device)).cpu().numpy()
    return Predictions(
        labels=labels,
        predicted=np.where(total[0] > 0, total[1], UNREAD).astype(np.int64),
        rank=total[2].astype(np.int64),
        loss=total[3],
        confidence=total[4],
        classes=classes,
    )
