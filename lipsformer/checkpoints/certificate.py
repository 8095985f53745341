"""The certificate of a checkpoint, computed from its weights; nothing of it is stored."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsformer.bundle.certificate import MOST_CLASSES, SAFETY, Certificate
from lipsformer.images.samples import SAMPLES
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.lipschitz.bounds import bound_features
from lipsformer.model.pixel_norm import PixelNormalize

from .checkpoint import Checkpoint

__all__ = ["bounded_certificate", "certificate_of", "rounding"]

NOISES = 18  # random images, next to the sample photos


def certificate_of(checkpoint: Checkpoint) -> Certificate | None:
    """The certificate of a network that was built for one, with convex residuals and MaxMin; None for others.

    Many of those have a Lipschitz bound too, but one that certifies nothing.
    """
    config = checkpoint.config
    built_for_one = config.residual == "convex" and config.activation == "maxmin"
    return bounded_certificate(checkpoint) if built_for_one else None


def bounded_certificate(checkpoint: Checkpoint) -> Certificate | None:
    """The certificate of the float32 network in PyTorch; None without a Lipschitz bound, or above 256 classes.

    The bound is computed in float64 and rounded outward. The float32 network differs from the one in real arithmetic by
    rounding: that is measured, against float64, at the package's sample photos and at noise, and counts
    `SAFETY` times at each end.
    """
    if checkpoint.config.num_classes > MOST_CLASSES:
        return None
    model = checkpoint.calibrated()
    std = PixelNormalize(checkpoint.preprocessing).divisor.double() / 255  # as float32 has it
    bound = bound_features(model, std.tolist()).log10
    if bound is None or not -300 < bound < 300:
        return None
    head = model.head.weight.detach().double()
    distances = (head[:, None] - head).square().sum(dim=-1).sqrt()
    if not bool(distances.isfinite().all()):
        return None
    change = rounding(checkpoint, _images(checkpoint))
    if not math.isfinite(change):
        return None
    return Certificate(
        lipschitz=10**bound,
        distances=tuple(map(tuple, distances.tolist())),
        error=4 * SAFETY * change,  # two logits at both ends
    )


def rounding(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> float:
    """The largest difference of a logit between float32 and float64, at pixels (N, S, S, 3)."""
    found, wanted = (_logits(checkpoint, pixels, dtype) for dtype in (torch.float32, torch.float64))
    return float((found.double() - wanted).abs().max())


@torch.inference_mode()
def _logits(checkpoint: Checkpoint, pixels: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    model: LipsFormer = copy.deepcopy(checkpoint.calibrated()).to(dtype).eval()
    normalize = PixelNormalize(checkpoint.preprocessing).to(dtype)
    logits: Tensor = model(normalize(torch.tensor(pixels)).to(dtype))
    return logits


def _images(checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """The sample photos, and noise: of single pixels, and black-and-white, the largest values that there are."""
    size = checkpoint.preprocessing.image_size
    photos = [checkpoint.preprocessing.read(path) for path in sorted(SAMPLES.glob("*.jpg"))]
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (NOISES, size, size, 3), dtype=np.uint8)
    noise[NOISES // 2 :] = np.where(noise[NOISES // 2 :] < 128, 0, 255)
    return np.stack([*photos, *noise])
