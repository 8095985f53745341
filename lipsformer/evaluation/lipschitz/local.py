"""Lower bounds of Lipschitz constants: the norm of a network's Jacobian at given images.

The Lipschitz constant is at least the norm of the derivative at any point. So each number here is at most the constant,
and at most every true upper bound of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from lipsformer.model.blocks import LipsFormer, Stage
from lipsformer.model.lipschitz.power_iteration import power_iteration

__all__ = ["jacobian_norm", "local_norm", "local_profile", "network_steps"]

Map = Callable[[Tensor], Tensor]


def local_norm(model: LipsFormer, image: Tensor) -> float:
    """Largest singular value of the Jacobian of `model` (logits by input) at a normalized image (3, S, S).

    By power iteration in float64, from below: see `power_iteration`.
    """
    return jacobian_norm(_evaluated(model), image.double()[None])[0]


def local_profile(model: LipsFormer, image: Tensor) -> list[float]:
    """The same from the image to the output of each step, in the order of `network_steps`.

    Each is a lower bound. The iterations are few and start from the previous step's result, so that inner steps may be
    a few percent below the norm of their Jacobian.
    """
    steps = network_steps(_evaluated(model))
    point = image.double()[None]
    norms, vector = [], None
    for count in range(1, len(steps) + 1):
        norm, vector = jacobian_norm(_chain(steps[:count]), point, vector, tolerance=1e-2, max_steps=12)
        norms.append(norm)
    return norms


def network_steps(model: LipsFormer) -> list[Map]:
    """The steps of `model` as functions: embedding, each block, each merging, pooling, head."""
    stages = [cast(Stage, stage) for stage in model.layers]
    inner = [
        step for stage in stages for step in (*stage.blocks, stage.downsample) if not isinstance(step, nn.Identity)
    ]
    return [model.patch_embed, *inner, lambda x: model.pool(model.norm(x)), model.head]


def jacobian_norm(
    function: Map, point: Tensor, start: Tensor | None = None, *, tolerance: float = 1e-4, max_steps: int = 100
) -> tuple[float, Tensor]:
    """The norm of the Jacobian of `function` at `point` (1, ...), and the direction (1, ...) that attains it."""
    point = point.detach().requires_grad_()
    image = function(point)
    # J^T u, as a function of u, is linear: its own transpose applies J. The graphs are built once and reused.
    covector = torch.zeros_like(image, requires_grad=True)
    (pulled,) = torch.autograd.grad(image, point, covector, create_graph=True)

    def forward(vector: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, covector, vector, retain_graph=True)[0]

    def transpose(vector: Tensor) -> Tensor:
        return torch.autograd.grad(image, point, vector, retain_graph=True)[0]

    if start is None:
        start = torch.randn(point.shape, dtype=point.dtype, generator=torch.Generator().manual_seed(0))
    values, vector = power_iteration(forward, transpose, start, tolerance=tolerance, max_steps=max_steps)
    return float(values), vector


def _evaluated(model: LipsFormer) -> LipsFormer:
    """A copy in float64 and evaluation mode, whose parameters need no gradients."""
    return copy.deepcopy(model).double().eval().requires_grad_(False)


def _chain(steps: list[Map]) -> Map:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run
