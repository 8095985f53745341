"""Affine maps over channels, the algebra of folding, in float64. A chain of affine maps is one affine map."""

from __future__ import annotations

import copy
import dataclasses
from typing import Self

import torch
from torch import Tensor, nn

from lipsformer.model.norm import CenterNorm

__all__ = ["Affine", "convolution_then"]


@dataclasses.dataclass(frozen=True)
class Affine:
    """x -> weight x + bias, on the channels of a token: weight (out, in), bias (out,), float64."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The map of a linear layer, a 1x1 convolution or a CenterNorm.

        Raises:
            TypeError: for any other module.
        """
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = _wide(module.weight).flatten(1)
            return cls(weight, weight.new_zeros(len(weight)) if module.bias is None else _wide(module.bias))
        if isinstance(module, CenterNorm):
            gain = _wide(module.weight) * module.dim / (module.dim - 1)
            return cls(torch.diag(gain) - gain[:, None] / module.dim, _wide(module.bias))
        raise TypeError(f"{type(module).__name__} is not affine")

    @classmethod
    def scaling(cls, factors: Tensor) -> Self:
        """Multiply each channel by its factor, (channels,)."""
        return cls(torch.diag(_wide(factors)), torch.zeros(len(factors), dtype=torch.float64))

    @classmethod
    def shift(cls, offset: Tensor) -> Self:
        """Add an offset (channels,)."""
        return cls(torch.eye(len(offset), dtype=torch.float64), _wide(offset))

    def after(self, first: Affine) -> Affine:
        """The composition: first `first`, then this map."""
        return Affine(self.weight @ first.weight, self.weight @ first.bias + self.bias)

    def rows(self, start: int, stop: int) -> Affine:
        """The map to the output channels from `start` up to `stop`."""
        return Affine(self.weight[start:stop], self.bias[start:stop])

    def linear(self, *, bias: bool = True) -> nn.Linear:
        """The map as a float64 layer; without `bias`, the caller adds the offset elsewhere."""
        outputs, inputs = self.weight.shape
        layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
        layer.weight = nn.Parameter(self.weight.clone())
        if bias:
            layer.bias = nn.Parameter(self.bias.clone())
        return layer


def convolution_then(conv: nn.Conv2d, last: Affine) -> nn.Conv2d:
    """A float64 convolution that applies `conv` and then `last` to its output channels."""
    joined = last.after(Affine.of(conv))
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(joined.weight.reshape(-1, *conv.weight.shape[1:]))
    folded.bias = nn.Parameter(joined.bias)
    return folded


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().double()
