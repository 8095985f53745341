"""Muon (Jordan et al. 2024) with the Newton-Schulz iteration in the precision that the device is fast in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon"]


class Muon(torch.optim.Muon):
    """torch.optim.Muon with updates as large as AdamW's (`match_rms_adamw`) and another precision and order of work.

    torch 2.13 computes in bfloat16 everywhere. A CPU without instructions for it then takes 30 times as long as in
    float32, so here a CPU computes in float32. Matrices of one shape are orthogonalized together.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the weights (A, B) from their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, parameters in of_shape.items():
                updates = self._orthogonalize(torch.stack([self._momentum(each, group) for each in parameters]), group)
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates.unbind(), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with Nesterov momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
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
