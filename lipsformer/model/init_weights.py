"""Initial weights: LipsFormer's spectral initialization, and the two that it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import ShiftConv2d
from .lipschitz.spectral import spectral_norm
from .norm import CenterNorm

__all__ = ["init_weights"]


@torch.no_grad()
def init_weights(model: nn.Module, scheme: str) -> None:
    """Initializes `model` in place.

    * "spectral" (LipsFormer, section 4.1.4): linear layers and convolutions get Xavier-normal weights divided by their
      largest singular value (a convolution reshaped to output channels x the rest), so that a linear layer starts with
      Lipschitz constant 1.
    * "xavier": the same without the division (Glorot and Bengio 2010).
    * "orthogonal": linear layers and convolutions get random orthogonal matrices (Saxe, McClelland and Ganguli 2014),
      and depthwise convolutions random shifts by up to half a kernel: every layer starts with all singular values 1.
    * "trunc_normal": linear weights from a normal of deviation 0.02, convolutions as PyTorch has them: what Swin and
      CSwin do.

    In all of them shifts are random, linear biases are 0, convolution biases PyTorch's default, norms the identity up
    to centring, and tables of position biases normal with deviation 0.02. Everything else keeps the values it was built
    with.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if scheme == "orthogonal" or isinstance(module, ShiftConv2d):
                _make_orthogonal(module.weight)
            elif scheme in ("spectral", "xavier"):
                nn.init.xavier_normal_(module.weight)
                if scheme == "spectral":
                    module.weight /= spectral_norm(module.weight.flatten(1))
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, CenterNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)


def _make_orthogonal(weight: Tensor) -> None:
    """A random orthogonal matrix; of a depthwise kernel (C, 1, k, k), one tap of each channel is 1."""
    if weight.ndim == 4 and weight.shape[1] == 1:
        taps = weight.zero_().flatten(1)
        taps[torch.arange(len(taps)), torch.randint(taps.shape[1], (len(taps),))] = 1.0
    else:
        nn.init.orthogonal_(weight)
