"""Activations: GELU, and MaxMin, whose Lipschitz constant is 1 and which shortens no gradient."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MaxMin", "build_activation"]


class Gelu(nn.Module):
    """x Phi(x) (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class MaxMin(nn.Module):
    """Sorts pairs of channels, c and c + C / 2: the larger of the two, then the smaller (Anil, Lucas and Grosse 2019).

    Its derivative is a permutation wherever there is one, so it keeps lengths: its Lipschitz constant is exactly 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) with even C to the same shape."""
        if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out: Tensor = SortPairs.apply(x)  # type: ignore[no-untyped-call]
            return out
        first, second = x.chunk(2, dim=-1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=-1)


class SortPairs(torch.autograd.Function):
    """MaxMin; the gradients of `torch.maximum` and `torch.minimum` are several times slower on a CPU.

    Which pairs were sorted already is kept as numbers 0 and 1: a choice by booleans takes nine times as long as `lerp`,
    which is exact at both ends.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        ctx.save_for_backward(torch.ge(first, second, out=torch.empty_like(first)))
        out = torch.empty_like(x)
        larger, smaller = out.chunk(2, dim=-1)
        torch.maximum(first, second, out=larger)
        torch.minimum(first, second, out=smaller)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (sorted_already,) = ctx.saved_tensors
        larger, smaller = grad.chunk(2, dim=-1)
        parts = torch.lerp(smaller, larger, sorted_already), torch.lerp(larger, smaller, sorted_already)
        return torch.cat(parts, dim=-1)


def build_activation(kind: Literal["gelu", "maxmin"]) -> nn.Module:
    """The activation `kind` of a configuration."""
    return MaxMin() if kind == "maxmin" else Gelu()
