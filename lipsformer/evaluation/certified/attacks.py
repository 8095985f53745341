"""Attacks within an L2 ball of pixels from 0 to 1: by gradients, and by queries alone.

Each returns images that lower the lead of the true class, which may be negative. Pixels may leave 0..1: a certificate
holds for every change, so an attack that is not confined to the box is the harder test.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Logits", "lead", "pgd", "random_search"]

Logits = Callable[[Tensor], Tensor]  # pixels (N, S, S, 3) in 0..1 to logits (N, K)
COARSE = (2, 4, 8)  # blocks along a side of the changes that the search tries
STRIDE = 0.5  # of a proposal, in radii


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the true class is ahead of the best other one, (N,); not above 0 is a wrong answer."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(dim=1)


def pgd(
    logits: Logits, pixels: Tensor, labels: Tensor, radius: float | Tensor, *, steps: int, restarts: int, seed: int = 0
) -> Tensor:
    """Projected gradient descent on the lead (Madry et al., ICLR 2018), from the image and from random places.

    Args:
        logits: the network.
        pixels: images (N, S, S, 3) in 0..1, float.
        labels: true classes (N,).
        radius: of the ball, one for all or one for each image, (N,).
        steps: of gradient descent, in each of the restarts.
        restarts: starts; the first is the image itself.
        seed: of the random starts.

    Returns:
        For each image the change (N, S, S, 3) of the smallest lead. An image is left alone once its answer is wrong.
    """
    random = torch.Generator().manual_seed(seed)
    sizes = _sizes(radius, pixels)
    best = torch.zeros_like(pixels)
    with torch.no_grad():
        least = lead(logits(pixels), labels)
    for restart in range(restarts):
        start = torch.zeros_like(pixels)
        if restart:
            start = sizes * _unit(torch.randn(pixels.shape, generator=random, dtype=pixels.dtype))
        (at,) = (least > 0).nonzero(as_tuple=True)
        image, label, size, change = pixels[at], labels[at], sizes[at], start[at]
        for step in range(steps + 1):
            if not len(at):
                return best
            change.requires_grad_(True)
            found = lead(logits(image + change), label)
            (slope,) = torch.autograd.grad(found.sum(), change)
            change, found = change.detach(), found.detach()
            smaller = found < least[at]
            best[at[smaller]], least[at] = change[smaller], torch.minimum(least[at], found)
            rate = 2.0 * (1 - step / (steps + 1)) / max(steps, 1) ** 0.5
            change = _into_ball(change - rate * size * _unit(slope), size)
            if not bool((right := found > 0).all()):
                at, image, label, size, change = (part[right] for part in (at, image, label, size, change))
    return best


@torch.no_grad()
def random_search(
    logits: Logits, pixels: Tensor, labels: Tensor, radius: float | Tensor, *, queries: int, seed: int = 0
) -> Tensor:
    """A black-box attack: coarse random changes, kept if they lower the lead; see `pgd` for the arguments.

    In the manner of the square attack (Andriushchenko et al., ECCV 2020): blocks of one color.
    """
    random = torch.Generator().manual_seed(seed)
    size = _sizes(radius, pixels)
    count, side = len(pixels), pixels.shape[1]
    best = torch.zeros_like(pixels)
    least = lead(logits(pixels), labels)
    for query in range(queries):
        blocks = COARSE[query % len(COARSE)]
        coarse = torch.randn(count, 3, blocks, blocks, generator=random, dtype=pixels.dtype)
        spread = torch.nn.functional.interpolate(coarse, size=(side, side)).permute(0, 2, 3, 1)
        change = best + STRIDE * size * _unit(spread)
        change = size * _unit(change)  # to the sphere: the worst change is as long as it may be
        found = lead(logits(pixels + change), labels)
        smaller = found < least
        best[smaller], least = change[smaller], torch.minimum(least, found)
    return best


def _sizes(radius: float | Tensor, pixels: Tensor) -> Tensor:
    return torch.as_tensor(radius, dtype=pixels.dtype).expand(len(pixels))[:, None, None, None]


def _unit(x: Tensor) -> Tensor:
    lengths = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    unit: Tensor = x / lengths[:, None, None, None]
    return unit


def _into_ball(change: Tensor, size: Tensor) -> Tensor:
    lengths = change.flatten(1).norm(dim=1)[:, None, None, None]
    inside: Tensor = change * (size / lengths.clamp_min(torch.finfo(change.dtype).tiny)).clamp_max(1.0)
    return inside
