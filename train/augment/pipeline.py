"""Augmentation of whole batches on the device. The loader's workers only decode, crop and flip.

All random parameters of a step are sampled at once for its whole batch, on the CPU, as a function of (seed, step). Each
process, or each part of a batch under gradient accumulation, then uses the rows for its images: how a batch is split
does not change a pixel.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lipsformer.model.pixel_norm import Normalize
from lipsformer.train.data.rng import Stream, generator

from .mixup import MixParams, mix, sample_mix
from .rand_augment import RandAugmentParams, rand_augment, sample_rand_augment
from .random_erasing import ErasingParams, random_erasing, sample_random_erasing

__all__ = ["Augmentation", "AugmentationParams"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationParams:
    """The random parameters of a step, for each kind of augmentation that is on."""

    images: int
    rand_augment: RandAugmentParams | None
    random_erasing: ErasingParams | None
    mix: MixParams | None

    def part(self, start: int, stop: int) -> AugmentationParams:
        """The parameters of images `start` to `stop` of the batch.

        Raises:
            ValueError: if that would split a pair of partners.
        """
        if start % 2 or (stop % 2 and stop != self.images) or not 0 <= start <= stop <= self.images:
            raise ValueError(f"images {start} to {stop} of {self.images}: a batch can only be split between two pairs")
        rows = slice(start, stop)
        return AugmentationParams(
            images=stop - start,
            rand_augment=self.rand_augment and self.rand_augment[rows],
            random_erasing=self.random_erasing and self.random_erasing[rows],
            mix=self.mix and self.mix[rows],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A recipe's augmentation settings. 0 turns a kind off.

    Attributes:
        rand_augment: magnitude of RandAugment, 0 to 10.
        mixup: alpha of mixup.
        cutmix: alpha of CutMix.
        random_erasing: probability that a box of an image is erased.
        label_smoothing: share of a target that is spread evenly over all classes.
        classes: number of classes.
    """

    rand_augment: float
    mixup: float
    cutmix: float
    random_erasing: float
    label_smoothing: float
    classes: int

    def sample(self, seed: int, step: int, batch_size: int) -> AugmentationParams:
        """Random parameters for the `batch_size` images, over all processes, of step `step`."""
        edits = boxes = mixes = None
        if self.rand_augment:
            edits = sample_rand_augment(generator(seed, Stream.AUGMENT, step), batch_size, self.rand_augment)
        if self.random_erasing:
            boxes = sample_random_erasing(generator(seed, Stream.ERASE, step), batch_size, self.random_erasing)
        if self.mixup or self.cutmix:
            mixes = sample_mix(generator(seed, Stream.MIX, step), batch_size, self.mixup, self.cutmix)
        return AugmentationParams(images=batch_size, rand_augment=edits, random_erasing=boxes, mix=mixes)

    def apply(
        self, pixels: Tensor, labels: Tensor, params: AugmentationParams, normalize: Normalize
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch, or a part of one, on the device of `pixels`.

        Args:
            pixels: (B, S, S, 3) uint8; not changed.
            labels: (B,) int64.
            params: of the same B images.
            normalize: on the same device; its buffers decide the precision of the images.

        Returns:
            Normalized images (B, 3, S, S), a channels-last view, and soft targets (B, K) float32.
        """
        if not len(pixels) == len(labels) == params.images:
            raise ValueError(f"{len(pixels)} images, {len(labels)} labels and parameters for {params.images}")
        targets = self._targets(labels)
        if params.rand_augment is not None:
            pixels = rand_augment(pixels, params.rand_augment)
        images = normalize(pixels).permute(0, 2, 3, 1)  # (B, S, S, 3), as it lies in memory
        if params.random_erasing is not None:
            images = random_erasing(images, params.random_erasing)
        if params.mix is not None:
            images, targets = mix(images, targets, params.mix)
        return images.permute(0, 3, 1, 2), targets

    def _targets(self, labels: Tensor) -> Tensor:
        """One-hot targets (B, K) with label smoothing (Szegedy et al. 2016)."""
        shared = self.label_smoothing / self.classes
        targets = torch.full((len(labels), self.classes), shared, device=labels.device)
        return targets.scatter_(1, labels[:, None], 1 - self.label_smoothing + shared)
