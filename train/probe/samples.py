"""From features to the samples of a fit: standardized, weighted, and with some held out."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .features import Features
from .head import Head, Samples

__all__ = ["Axes", "Division", "divide_in_folds", "samples_of", "stratified_folds"]

FOLDS = 5
# Of the deviations' root mean square. Training leaves channels whose deviation is a millionth of others'. Divided by
# that, they get weights so large that the first steps of a fine-tuning have the loss 213 on fruit; now it is 6.
LEAST_DEVIATION = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """Standardization by `mean` and `deviation` (C,), then rotation to the principal axes (C, C); all float64.

    Features are strongly correlated. Along their principal axes, with the `variances` (C,), a fit takes about a third
    of the iterations. The penalty stays the same, because a rotation keeps the sum of the squared weights.
    """

    mean: Tensor
    deviation: Tensor
    rotation: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Features, device: torch.device) -> Axes:
        """The axes of all views of all readable images. No deviation is below a tenth of their root mean square."""
        rows = features.values[features.readable].to(device, torch.float64).flatten(0, 1)
        deviation, mean = torch.std_mean(rows, dim=0, correction=0)
        typical = float(deviation.square().mean().sqrt())
        constant = typical <= 1e-6 * float(mean.abs().max())  # all of them: what is left is rounding
        deviation = torch.ones_like(deviation) if constant else deviation.clamp(min=LEAST_DEVIATION * typical)
        rows = (rows - mean) / deviation
        variances, rotation = torch.linalg.eigh(rows.T @ rows / len(rows))
        return cls(mean=mean, deviation=deviation, rotation=rotation, variances=variances.clamp(min=0.0))

    def apply(self, rows: Tensor) -> Tensor:
        """Maps features (N, C) to those along the axes (N, C), float64."""
        return ((rows.to(self.mean) - self.mean) / self.deviation) @ self.rotation

    def head_before(self, head: Head) -> Head:
        """The head that gives the logits of `head` for features before `apply`."""
        weight = head.weight @ self.rotation.T / self.deviation
        return dataclasses.replace(head, weight=weight, bias=head.bias - weight @ self.mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Division:
    """Samples to fit, and others to measure the fit on, whose weights are their share of all held-out samples."""

    fitted: Samples
    held_out: Samples


def samples_of(features: Features, labels: NDArray[np.int64], classes: int, axes: Axes, *, balanced: bool) -> Samples:
    """The samples of all views of the readable images, image by image. With `balanced`, classes weigh the same."""
    own = torch.from_numpy(labels)[features.readable]
    weights = torch.ones(len(own), dtype=torch.float64)
    if balanced:
        weights /= torch.bincount(own, minlength=classes)[own]
    views, device = features.values.shape[1], axes.mean.device
    return Samples(
        features=axes.apply(features.values[features.readable].flatten(0, 1)),
        labels=own.repeat_interleave(views).to(device),
        weights=(weights / (weights.sum() * views)).repeat_interleave(views).to(device),
        variances=axes.variances,
        classes=classes,
    )


def divide_in_folds(samples: Samples, views: int) -> list[Division]:
    """Divides training samples, `views` of each image, by stratified folds; none if each class has a single image.

    The only image of a class is never held out. Of the others, the first view is: the one that prediction sees.
    """
    of_image = stratified_folds(samples.labels[::views].cpu().numpy())
    of_sample = torch.from_numpy(of_image).repeat_interleave(views).to(samples.labels.device)
    first_view = torch.arange(len(of_sample), device=of_sample.device) % views == 0
    total = samples.weights[first_view & (of_sample >= 0)].sum()
    divisions = []
    for fold in range(FOLDS):
        chosen = first_view & (of_sample == fold)
        if bool(chosen.any()):
            kept = torch.where(of_sample == fold, 0.0, samples.weights)
            held_out = dataclasses.replace(
                samples,
                features=samples.features[chosen],
                labels=samples.labels[chosen],
                weights=samples.weights[chosen] / total,
            )
            fitted = dataclasses.replace(samples, weights=kept / kept.sum())
            divisions.append(Division(fitted=fitted, held_out=held_out))
    return divisions


def stratified_folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold of each image, from 0; -1 for the only image of its class.

    Each fold is a contiguous part of each class. Neighbors in a listing are often photos of one object, taken one after
    the other. If folds separated them, the held-out loss would reward memorizing the object.
    """
    counts = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    ranks = np.empty_like(labels)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.where(counts[labels] > 1, ranks * FOLDS // counts[labels], -1)
