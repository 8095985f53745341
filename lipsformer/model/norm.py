"""CenterNorm: normalization without the division that makes LayerNorm's Lipschitz constant unbounded."""

from __future__ import annotations

from typing import Any

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
        weight = self.weight * (self.dim / (self.dim - 1))
        if self.training and not torch.compiler.is_compiling():  # which fuses the formula below by itself
            out: Tensor = CenterdAffine.apply(x, weight, self.bias)  # type: ignore[no-untyped-call]
            return out
        return (x - x.mean(dim=-1, keepdim=True)) * weight + self.bias

    def extra_repr(self) -> str:
        return str(self.dim)


class CenterdAffine(torch.autograd.Function):
    """(x - mean) * weight + bias over the last dimension, in half the passes over memory that autograd would make."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centerd = x - x.mean(dim=-1, keepdim=True)
        ctx.save_for_backward(centerd, weight)
        return torch.addcmul(bias, centerd, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centerd, weight = ctx.saved_tensors
        grad_x = grad * weight
        grad_x -= grad_x.mean(dim=-1, keepdim=True)  # centring is its own transpose
        return grad_x, (grad * centerd).sum_to_size(weight.shape), grad.sum_to_size(weight.shape)


def build_norm(kind: str, dim: int) -> nn.Module:
    """The norm that a configuration names: "center" or "layer"."""
    return CenterNorm(dim) if kind == "center" else nn.LayerNorm(dim)
