"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) between the two images of a pair.

The images at the places 2j and 2j + 1 of a batch are partners, so that a batch may be cut between any two pairs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from lipsformer.train.data.rng import Rows

__all__ = ["Mixtures", "draw_mixtures", "mix"]

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Booleans = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixtures(Rows):
    """How each image of a batch is mixed; both images of a pair have the same row.

    Attributes:
        shares: (B,) what the image keeps of itself, 1 where it is not mixed.
        cuts: (B,) whether a box comes from the partner (cutmix) instead of a share of every pixel (mixup).
        centers: (B, 2) of the box, in 0..1 from the top and the left.
    """

    shares: Array
    cuts: Booleans
    centers: Array


def draw_mixtures(rng: np.random.Generator, batch: int, mixup: float, cutmix: float) -> Mixtures:
    """Mixtures for `batch` images; `mixup` and `cutmix` are the alphas of their shares ~ Beta(alpha, alpha), 0 is off.

    Where both are on, each pair takes one of them by the toss of a coin.
    """
    pairs = batch // 2
    by_mixup, by_cutmix = (rng.beta(alpha, alpha, pairs) if alpha else np.ones(pairs) for alpha in (mixup, cutmix))
    cuts = rng.random(pairs) < (0.5 if mixup and cutmix else float(cutmix > 0))
    centers = rng.random((pairs, 2))
    alone = batch % 2  # the last image of an odd batch
    return Mixtures(
        shares=np.append(np.where(cuts, by_cutmix, by_mixup).repeat(2), np.ones(alone)),
        cuts=np.append(cuts.repeat(2), np.zeros(alone, dtype=bool)),
        centers=np.append(centers.repeat(2, axis=0), np.zeros((alone, 2)), axis=0),
    )


def mix(images: Tensor, targets: Tensor, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """Mixes images (B, S, S, 3) and targets (B, K), each with its partner's.

    A cut is a mixture with the weight 0 within the box and 1 outside; the targets' weight is the mean over the pixels.
    """
    side = images.shape[1]
    # The box is as large as its share asks for and loses what lies beyond the border, as in the paper.
    half = np.floor(np.sqrt(1 - mixtures.shares) * side)[:, None] // 2
    centers = np.floor(mixtures.centers * side)
    low, high = np.clip(centers - half, 0, side), np.clip(centers + half, 0, side)
    kept = np.where(mixtures.cuts, 1 - (high - low).prod(axis=1) / side**2, mixtures.shares)

    place = np.arange(len(kept))
    partner = np.where(place ^ 1 < len(kept), place ^ 1, place)
    values = np.concatenate([low, high, mixtures.shares[:, None], mixtures.cuts[:, None], kept[:, None]], axis=1)
    rows = torch.from_numpy(values).to(images.device, non_blocking=True).to(images.dtype)  # (B, 7)
    partners = torch.from_numpy(partner).to(images.device, non_blocking=True)

    axis = torch.arange(side, device=images.device)
    within = (axis >= rows[:, 0:2, None]) & (axis < rows[:, 2:4, None])  # (B, 2, S)
    outside = ~(within[:, 0, :, None] & within[:, 1, None, :])  # (B, S, S)
    share, cut, weight = rows[:, 4, None, None], rows[:, 5, None, None] > 0, rows[:, 6, None].to(targets.dtype)
    weights = torch.where(cut, outside.to(images.dtype), share)[..., None]  # (B, S, S, 1)
    return _mixed(images, weights, partners), _mixed(targets, weight, partners)


def _mixed(values: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    return values * weights + values.index_select(0, partners) * (1 - weights)
