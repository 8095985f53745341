"""How steep a map can be seen to be: the largest quotient |f(x) - f(y)| / |x - y| over many pairs, and at its worst."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipsformer.evaluation.lipschitz.local import jacobian_norm

__all__ = ["jacobian", "steepest"]

Map = Callable[[Tensor], Tensor]


def jacobian(function: Map, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear or affine `function` of one sample of `shape`: (outputs, inputs), float64."""
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (function(units) - function(torch.zeros_like(units))).flatten(1).T


def steepest(function: Map, shape: tuple[int, ...], *, points: int = 300) -> float:
    """The largest quotient that is found among pairs of inputs of `shape`, in float64.

    Pairs far apart, close and nearly equal, from nearly zero (where normalizations are steepest) to huge; and for some
    of the points the worst direction there, by power iteration.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(points, *shape, dtype=torch.float64, generator=generator)

    worst = 0.0
    with torch.no_grad():
        for size in (1e-5, 1e-3, 1e-1, 1.0, 30.0, 1e4):
            x = draw() * size
            for distance in (1e-4, 1e-2, 1.0):
                step = draw() * size * distance
                step[: points // 2] *= torch.rand(step[: points // 2].shape, generator=generator) < 0.1  # few numbers
                lengths = step.flatten(1).norm(dim=1)
                changes = (function(x + step) - function(x)).flatten(1).norm(dim=1)
                worst = max(worst, float((changes / lengths.clamp_min(1e-300)).max()))
    for size in (0.0, 1e-3, 1e-2, 1.0):
        worst = max(worst, jacobian_norm(function, draw()[:1] * size)[0])
    return worst
