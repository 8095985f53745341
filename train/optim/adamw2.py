"""AdamW2 (Qi et al., ICLR 2025, arXiv 2505.21910): no step moves a matrix far, measured by its spectral norm."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamW2", "largest_singular_value"]

# The paper's threshold of what a step may change. The value is ours: at 0.01, a norm can double in 70 steps.
LARGEST_SHARE = 0.01
ITERATIONS = 2  # of power iteration at each step, from the vector of the step before


class AdamW2(torch.optim.AdamW):
    """AdamW whose learning rate is bounded for each matrix W: rate * |update| <= 0.01 |W|, in spectral norms.

    By Weyl's inequality no singular value then moves by more than that share of the largest. The bounded rate
    multiplies the weight decay too. Groups of parameters with `bounded` have matrices (A, ...), which are flattened to
    (A, B). The norms are power iterations that continue from step to step; their vectors are part of the state.
    A matrix of zeros has no such bound.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.defaults["bounded"] = False  # of groups that are added later

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, as a training calls it
        """Updates the weights from their gradients."""
        before: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"] if group["bounded"] else ():
                if parameter.grad is not None:
                    before[parameter.shape].append((parameter, parameter.clone()))
        super().step()
        for pairs in before.values():
            parameters = [parameter for parameter, _ in pairs]
            old = torch.stack([weight.flatten(1) for _, weight in pairs])
            change = torch.stack([parameter.flatten(1) for parameter in parameters]) - old
            allowed = LARGEST_SHARE * self._norms(parameters, old, "weight_vector")
            taken = self._norms(parameters, change, "update_vector")
            bounded = (allowed > 0) & (taken > allowed)
            for index in bounded.nonzero().flatten().tolist():
                share = allowed[index] / taken[index]
                parameters[index].copy_((old[index] + share * change[index]).view_as(parameters[index]))

    def _norms(self, parameters: list[Tensor], matrices: Tensor, key: str) -> Tensor:
        """The spectral norms (N,) of matrices (N, A, B), by vectors that the parameters' states keep under `key`."""
        for parameter in parameters:
            if key not in self.state[parameter]:
                start = torch.randn(matrices.shape[2], generator=torch.Generator().manual_seed(0))
                self.state[parameter][key] = start.to(matrices)
        vectors = torch.stack([self.state[parameter][key] for parameter in parameters])
        norms, vectors = largest_singular_value(matrices, vectors)
        for parameter, vector in zip(parameters, vectors, strict=True):
            self.state[parameter][key].copy_(vector)
        return norms


def largest_singular_value(matrices: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates (N,) from below of the spectral norms of matrices (N, A, B), and the vectors (N, B) to continue with.

    A matrix of zeros keeps its vector.
    """
    norms = vectors.new_zeros(len(vectors))
    for _ in range(ITERATIONS):
        left = torch.nn.functional.normalize(torch.bmm(matrices, vectors[:, :, None]), dim=1)
        right = torch.bmm(matrices.mT, left)[:, :, 0]
        norms = right.norm(dim=1)
        vectors = torch.where(norms[:, None] > 0, right / norms[:, None].clamp_min(1e-30), vectors)
    return norms, vectors
