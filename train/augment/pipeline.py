"""Augmentation of batches on the device, behind the workers that only decode, crop and flip.

All random numbers of a step are drawn at once for its whole batch, on the CPU, as a function of (seed, step). Each
process, or each share of a batch whose gradients are accumulated, then takes the rows of its own images: how a batch
is cut does not change a pixel.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train.data.rng import Stream, generator

from .mixup import Mixtures, draw_mixtures, mix
from .rand_augment import Edits, draw_edits, edit
from .random_erasing import Erasures, draw_erasures, erase

__all__ = ["Augmentation", "Draws"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of a step: those of each kind that is on."""

    images: int
    edits: Edits | None
    erasures: Erasures | None
    mixtures: Mixtures | None

    def part(self, start: int, stop: int) -> Draws:
        """The rows of the images `start` to `stop` of the batch.

        Raises:
            ValueError: if a pair of partners would be cut in two.
        """
        if start % 2 or (stop % 2 and stop != self.images) or not 0 <= start <= stop <= self.images:
            raise ValueError(f"images {start} to {stop} of {self.images}: a batch is cut between two pairs")
        rows = slice(start, stop)
        return Draws(
            images=stop - start,
            edits=self.edits and self.edits.rows(rows),
            erasures=self.erasures and self.erasures.rows(rows),
            mixtures=self.mixtures and self.mixtures.rows(rows),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a recipe asks for; 0 turns a kind off.

    Attributes:
        rand_augment: the magnitude of RandAugment, 0 to 10.
        mixup: alpha of mixup.
        cutmix: alpha of cutmix.
        random_erasing: the probability that a box of an image is erased.
        label_smoothing: the share of a target that all classes have in common.
        classes: their number.
    """

    rand_augment: float
    mixup: float
    cutmix: float
    random_erasing: float
    label_smoothing: float
    classes: int

    def draw(self, seed: int, step: int, batch: int) -> Draws:
        """Draws for the `batch` images, over all processes, of step `step`."""
        edits = erasures = mixtures = None
        if self.rand_augment:
            edits = draw_edits(generator(seed, Stream.AUGMENT, step), batch, self.rand_augment)
        if self.random_erasing:
            erasures = draw_erasures(generator(seed, Stream.ERASE, step), batch, self.random_erasing)
        if self.mixup or self.cutmix:
            mixtures = draw_mixtures(generator(seed, Stream.MIX, step), batch, self.mixup, self.cutmix)
        return Draws(images=batch, edits=edits, erasures=erasures, mixtures=mixtures)

    def apply(self, pixels: Tensor, labels: Tensor, draws: Draws, normalize: PixelNormalize) -> tuple[Tensor, Tensor]:
        """Augments a batch, or the part of one that `draws` is of, on the device of `pixels`.

        Args:
            pixels: (B, S, S, 3) uint8; not changed.
            labels: (B,) int64.
            draws: of the same B images.
            normalize: on the same device; its buffers decide the precision of the images.

        Returns:
            Normalized images (B, 3, S, S), a channels-last view, and targets (B, K) float32 for a cross entropy.
        """
        if not len(pixels) == len(labels) == draws.images:
            raise ValueError(f"{len(pixels)} images, {len(labels)} labels and draws for {draws.images}")
        targets = self._targets(labels)
        if draws.edits is not None:
            pixels = edit(pixels, draws.edits)
        images = normalize(pixels).permute(0, 2, 3, 1)  # (B, S, S, 3), as it lies in memory
        if draws.erasures is not None:
            images = erase(images, draws.erasures)
        if draws.mixtures is not None:
            images, targets = mix(images, targets, draws.mixtures)
        return images.permute(0, 3, 1, 2), targets

    def _targets(self, labels: Tensor) -> Tensor:
        """Smoothed one-hot targets (B, K), as in Szegedy et al. 2016."""
        shared = self.label_smoothing / self.classes
        targets = torch.full((len(labels), self.classes), shared, device=labels.device)
        return targets.scatter_(1, labels[:, None], 1 - self.label_smoothing + shared)
