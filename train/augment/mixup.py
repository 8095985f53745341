"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) between the two images of a pair.

Images 2j and 2j + 1 of a batch are partners, so a batch can be split between any two pairs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from lipsformer.train.data.rng import PerImage

__all__ = ["MixParams", "mix", "sample_mix"]

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Booleans = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixParams(PerImage):
    """How each image of a batch is mixed. Both images of a pair have the same row.

    Attributes:
        lam: (B,) the papers' lambda: the weight of the image itself, 1 where it is not mixed.
        is_cutmix: (B,) whether a box comes from the partner (CutMix) or a share of every pixel (mixup).
        centers: (B, 2) of the box, in 0..1 from the top and the left.
    """

    lam: Array
    is_cutmix: Booleans
    centers: Array


def sample_mix(rng: np.random.Generator, batch_size: int, mixup: float, cutmix: float) -> MixParams:
    """Random parameters for `batch_size` images; `mixup` and `cutmix` are the alphas of lambda ~ Beta(alpha, alpha).

    An alpha of 0 turns its kind off. With both on, a coin toss chooses one of them for each pair.
    """
    pairs = batch_size // 2
    by_mixup, by_cutmix = (rng.beta(alpha, alpha, pairs) if alpha else np.ones(pairs) for alpha in (mixup, cutmix))
    is_cutmix = rng.random(pairs) < (0.5 if mixup and cutmix else float(cutmix > 0))
    centers = rng.random((pairs, 2))
    unpaired = batch_size % 2  # the last image of an odd batch
    return MixParams(
        lam=np.append(np.where(is_cutmix, by_cutmix, by_mixup).repeat(2), np.ones(unpaired)),
        is_cutmix=np.append(is_cutmix.repeat(2), np.zeros(unpaired, dtype=bool)),
        centers=np.append(centers.repeat(2, axis=0), np.zeros((unpaired, 2)), axis=0),
    )


def mix(images: Tensor, targets: Tensor, params: MixParams) -> tuple[Tensor, Tensor]:
    """Mixes images (B, S, S, 3) and targets (B, K), each with its partner's.

    CutMix is mixup with the weight 0 inside the box and 1 outside. A target's weight is the mean over the pixels.
    """
    side = images.shape[1]
    # The box is as large as lambda asks for and loses what lies beyond the border, as in the paper.
    half = np.floor(np.sqrt(1 - params.lam) * side)[:, None] // 2
    centers = np.floor(params.centers * side)
    low, high = np.clip(centers - half, 0, side), np.clip(centers + half, 0, side)
    target_lam = np.where(params.is_cutmix, 1 - (high - low).prod(axis=1) / side**2, params.lam)

    index = np.arange(len(target_lam))
    partner = np.where(index ^ 1 < len(index), index ^ 1, index)
    values = np.concatenate([low, high, params.lam[:, None], params.is_cutmix[:, None], target_lam[:, None]], axis=1)
    rows = torch.from_numpy(values).to(images.device, non_blocking=True).to(images.dtype)  # (B, 7)
    partners = torch.from_numpy(partner).to(images.device, non_blocking=True)

    axis = torch.arange(side, device=images.device)
    within = (axis >= rows[:, 0:2, None]) & (axis < rows[:, 2:4, None])  # (B, 2, S)
    outside = ~(within[:, 0, :, None] & within[:, 1, None, :])  # (B, S, S)
    lam, is_cutmix = rows[:, 4, None, None], rows[:, 5, None, None] > 0
    weights = torch.where(is_cutmix, outside.to(images.dtype), lam)[..., None]  # (B, S, S, 1)
    return _mixed(images, weights, partners), _mixed(targets, rows[:, 6, None].to(targets.dtype), partners)


def _mixed(values: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    return values * weights + values.index_select(0, partners) * (1 - weights)
