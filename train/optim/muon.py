"""Muon (Jordan et al. 2024) with the Newton-Schulz iteration in the precision that the device is fast in."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon"]


class Muon(torch.optim.Muon):
    """torch.optim.Muon with updates as large as AdamW's (`match_rms_adamw`) and another precision and order of work.

    torch 2.13 computes in bfloat16 everywhere (findings/torch_muon_rounds_every_update_to_bfloat16.sh). A CPU without
    instructions for it then takes 25 times as long as in float32, so here a CPU computes in the weights' own type.
    Matrices of one shape are orthogonalized together.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, as a training calls it
        """Updates the weights (A, B) from their gradients."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    momentum = self._momentum(parameter, parameter.grad, group)
                    of_shape[parameter.shape].append((parameter, momentum))
            for shape, pairs in of_shape.items():
                parameters, momenta = zip(*pairs, strict=True)
                updates = self._orthogonalize(torch.stack(momenta), group)
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _momentum(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with Nesterov momentum."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(average, group["momentum"])

    @staticmethod
    def _orthogonalize(matrices: Tensor, group: dict[str, Any]) -> Tensor:
        """Matrices (N, A, B) with the same singular vectors, and singular values near 1."""
        a, b, c = group["ns_coefficients"]
        wide = matrices.shape[1] <= matrices.shape[2]
        x = matrices if wide else matrices.mT
        if x.is_cuda:
            x = x.bfloat16()
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x if wide else x.mT).to(matrices.dtype)
