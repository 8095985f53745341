"""CenterNorm: normalization without the division that makes LayerNorm's Lipschitz constant unbounded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from . import cpu_ops

__all__ = ["CenterNorm", "build_norm"]


class CenterNorm(nn.Module):
    """D / (D - 1) * (x - mean over the last dimension) * weight + bias (LipsFormer, section 4.1.1).

    Linear in x, so its Lipschitz constant is D / (D - 1) * max|weight|; LayerNorm's is unbounded near constant input.

    Args:
        dim: size D of the last dimension, at least 2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        weight = self.weight * (self.dim / (self.dim - 1))
        if cpu_ops.use_own_backward(self.training):
            return cpu_ops.center_affine(x, weight, self.bias)
        return (x - x.mean(dim=-1, keepdim=True)) * weight + self.bias

    def extra_repr(self) -> str:
        return str(self.dim)


def build_norm(kind: Literal["center", "layer"], dim: int) -> nn.Module:
    """CenterNorm or LayerNorm over the last of `dim` entries."""
    return CenterNorm(dim) if kind == "center" else nn.LayerNorm(dim)
