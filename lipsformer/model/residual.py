"""Weighted residual shortcuts and stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PlainResidual", "ResidualScale", "drop_path_mask"]


class ResidualScale(nn.Module):
    """The learned alpha of y = x + alpha * f(x), one per channel (LipsFormer, section 4.1.3).

    With `initial` = 1 / (number of blocks) the product of the blocks' Lipschitz constants 1 + alpha * L stays bounded
    however deep the network is.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps (B, ..., C) to the same shape, times `keep` (B, 1, ..., 1) if given, in one pass."""
        return branch * (self.scale if keep is None else self.scale * keep)


class PlainResidual(nn.Module):
    """The plain residual y = x + f(x), which `ResidualScale` replaces."""

    def forward(self, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps (B, ..., C) to the same shape, times `keep` (B, 1, ..., 1) if given."""
        return branch if keep is None else branch * keep.to(branch.dtype)


def drop_path_mask(draws: Tensor, drop_path: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016): a factor for each branch of each image, 0 or 1 / (1 - rate).

    The rate grows linearly from 0 at the first block to `drop_path` at the last. A kept branch is divided by its
    probability of being kept, so the expectation is unchanged and evaluation needs no correction.

    Args:
        draws: uniform numbers in 0..1, (blocks, branches, B).
        drop_path: the last block's rate, below 1.
    """
    rates = torch.linspace(0.0, drop_path, len(draws), device=draws.device)[:, None, None]
    return (draws >= rates) / (1.0 - rates)
