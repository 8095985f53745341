"""Weighted residual shortcuts and stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DropPath", "ResidualScale"]


class ResidualScale(nn.Module):
    """The learned alpha of y = x + alpha * f(x), one per channel (LipsFormer, section 4.1.3).

    With `initial` = 1 / (number of blocks) the product of the blocks' Lipschitz constants 1 + alpha * L stays bounded
    however deep the network is.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        return x * self.scale


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): while training, drops a branch for whole samples at `rate`.

    Kept samples are divided by 1 - rate, so the expectation is unchanged and evaluation needs no correction.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, ...) to (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
