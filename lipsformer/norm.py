"""CenterNorm: normalisation without the division that makes LayerNorm's Lipschitz constant unbounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred * (self.weight * (self.dim / (self.dim - 1))) + self.bias

    def extra_repr(self) -> str:
        return str(self.dim)


def build_norm(kind: str, dim: int) -> nn.Module:
    """The norm that a configuration names: "center" or "layer"."""
    return CenterNorm(dim) if kind == "center" else nn.LayerNorm(dim)
