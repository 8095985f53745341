"""Attention over queries, keys and values: the paper's scaled cosine similarity attention, and plain dot products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import cpu_ops
from .config import ModelConfig

__all__ = ["DotProductAttention", "ScaledCosineAttention", "build_attention", "l2_normalize"]


def l2_normalize(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(|x|**2 + epsilon) over the last dimension; its Lipschitz constant is epsilon**-0.5."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + epsilon)


class ScaledCosineAttention(nn.Module):
    """nu * softmax(tau * cos(q, k) + bias) v: scaled cosine similarity attention (LipsFormer, section 4.1.2).

    The paper normalizes v too (`value_norm`), without which the map is not Lipschitz; the official Swin code does not.
    tau (`temperature`) and nu (`value_scale`) are constants, or one parameter per head with `config.learned_scales`.
    """

    temperature: Tensor | float
    value_scale: Tensor | float

    def __init__(self, config: ModelConfig, num_heads: int) -> None:
        super().__init__()
        self.value_norm = config.value_norm
        self.epsilon = config.epsilon
        if config.learned_scales:
            self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), config.temperature))
            self.value_scale = nn.Parameter(torch.full((num_heads, 1, 1), config.value_scale))
        else:
            self.temperature = config.temperature
            self.value_scale = config.value_scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps q, k and v, each (..., heads, N, d), to (..., heads, N, d); `bias` is added to the (N, N) scores."""
        own = cpu_ops.use_own_backward(self.training)
        unit = cpu_ops.l2_normalize if own else l2_normalize
        if own and isinstance(self.temperature, float):
            q = cpu_ops.l2_normalize(q, self.epsilon, self.temperature)  # (..., heads, N, d)
        else:
            q = unit(q, self.epsilon) * in_precision(self.temperature, q)
        k = unit(k, self.epsilon)
        v = unit(v, self.epsilon) if self.value_norm else v
        scores = q @ k.transpose(-2, -1)  # (..., heads, N, N): tau * cos(q, k)
        out = torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v  # (..., heads, N, d)
        unscaled = isinstance(self.value_scale, float) and self.value_scale == 1.0
        return out if unscaled else out * in_precision(self.value_scale, out)


def in_precision(scale: Tensor | float, x: Tensor) -> Tensor | float:
    """A scale in the precision of `x`, so that their product has it, too."""
    return scale.to(x.dtype) if isinstance(scale, Tensor) else scale


class DotProductAttention(nn.Module):
    """softmax(q k / sqrt(d) + bias) v (Vaswani et al. 2017), which is not Lipschitz (Kim, Papamakarios, Mnih 2021)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps q, k and v, each (..., heads, N, d), to (..., heads, N, d); `bias` is added to the (N, N) scores."""
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (..., heads, N, N)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v


def build_attention(config: ModelConfig, num_heads: int) -> nn.Module:
    """The attention that `config.attention` names, for `num_heads` heads."""
    return ScaledCosineAttention(config, num_heads) if config.attention == "cosine" else DotProductAttention()
