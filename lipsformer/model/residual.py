"""Residual connections and stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import cpu_ops
from .config import ModelConfig

__all__ = ["ConvexResidual", "PlainResidual", "ResidualScale", "build_residual", "drop_path_mask"]


class ResidualScale(nn.Module):
    """The weighted residual y = x + alpha * f(x), with one learned alpha per channel (LipsFormer, section 4.1.3).

    With `initial` = 1 / (number of blocks) the product of the blocks' Lipschitz constants 1 + alpha * L stays bounded
    however deep the network is.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """The sum of x and `branch` = f(x), both (B, ..., C); `keep` (B, 1, ..., 1) scales the branches of images."""
        scale = self.scale if keep is None else self.scale * keep
        if x.device.type == "cpu" and cpu_ops.use_own_backward(self.training):
            return cpu_ops.add_scaled(x, branch, scale)
        return x + branch * scale


class PlainResidual(nn.Module):
    """The plain residual y = x + f(x), which the others replace."""

    def forward(self, x: Tensor, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """The sum of x and `branch` = f(x), both (B, ..., C); `keep` (B, 1, ..., 1) scales the branches of images."""
        return x + (branch if keep is None else branch * keep.to(branch.dtype))


class ConvexResidual(nn.Module):
    """The convex residual y = (1 - alpha) x + alpha f(x), with one alpha = sigmoid(`logit`) in 0..1.

    Its Lipschitz constant is at most (1 - alpha) + alpha L, which f = L x reaches: at most 1 for L <= 1, at any depth.
    One alpha per channel would not have that bound: with alpha = (0, 1) and f(a, b) = (0, a), which has L = 1, y is
    (a, a), longer than x by the root of 2. `initial` is the alpha to start from; unless it is `learned`, it stays.
    """

    def __init__(self, initial: float = 0.5, *, learned: bool = True) -> None:
        super().__init__()
        logit = torch.logit(torch.tensor([initial], dtype=torch.float64)).float()
        self.logit = nn.Parameter(logit, requires_grad=learned)

    @property
    def alpha(self) -> Tensor:
        """The share of the branch, (1,)."""
        return torch.sigmoid(self.logit)

    def forward(self, x: Tensor, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """The mean of x and `branch` = f(x), both (B, ..., C); `keep` (B, 1, ..., 1) scales the way from x to it."""
        if keep is None and cpu_ops.use_own_backward(self.training):
            return cpu_ops.convex_sum(x, branch, self.alpha)
        return x + (branch - x) * (self.alpha if keep is None else self.alpha * keep)


def build_residual(config: ModelConfig, dim: int, share: float) -> nn.Module:
    """The residual connection of a configuration, for `dim` channels.

    `share` is what a branch of a convex one has at first.
    """
    if config.residual == "weighted":
        return ResidualScale(dim, 1.0 / sum(config.depths))
    if config.residual == "convex":
        return ConvexResidual(share, learned=config.learned_shares)
    return PlainResidual()


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
