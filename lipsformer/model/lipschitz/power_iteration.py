"""Power iteration: the largest singular values of linear maps that are given as functions.

It needs the map and its transpose but no matrix, so it works for a convolution at its true resolution and for the
Jacobian of a whole network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["power_iteration"]


def power_iteration(
    forward: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Largest singular values of a batch of linear maps, and the vectors for a next step.

    Each value is |A v| for a unit vector v: a lower bound of the norm whether or not the iteration has converged. It
    never falls from step to step; the iteration ends once no value of the batch grows by more than the relative
    `tolerance`, or after `max_steps`. If the largest singular values are close together it ends early, slightly too
    low: an estimate of the norm, never an upper bound.

    Args:
        forward: maps (B, ...) to (B, ...), each sample by its own linear map.
        transpose: applies the transposed maps.
        start: (B, ...) on the input side, with a component in the wanted direction; a random one has it.

    Returns:
        Values (B,) and unit vectors of the shape of `start`.
    """
    vector = _unit(start)
    values = torch.zeros(len(start), dtype=start.dtype)
    for _ in range(max_steps):
        image = forward(vector)
        previous, values = values, image.flatten(1).norm(dim=1)
        vector = _unit(transpose(image))
        if bool((values <= previous * (1 + tolerance)).all()):
            break
    return values, vector


def _unit(x: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    unit: Tensor = x / lengths.clamp_min(torch.finfo(x.dtype).tiny)  # the image of the zero map stays zero
    return unit
