"""Spectral norms by power iteration, and the spectral initialisation built on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .norm import CenterNorm

__all__ = ["initialise_spectral", "spectral_norm"]


def spectral_norm(matrix: Tensor, *, tolerance: float = 1e-7, max_iterations: int = 2000) -> float:
    """Largest singular value of a 2-D `matrix` by power iteration on its smaller Gram matrix, in float64.

    An estimate from below that stops once a step changes it by less than `tolerance` relative; far cheaper than an SVD.
    The start vector is fixed, so the result is too.
    """
    matrix = matrix.detach().double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(gram), dtype=torch.float64, generator=generator).to(gram.device)
    previous = 0.0
    for _ in range(max_iterations):
        vector = gram @ (vector / vector.norm().clamp_min(torch.finfo(torch.float64).tiny))
        largest = float(vector.norm())  # of the Gram matrix: the square of the singular value
        if abs(largest - previous) <= tolerance * largest:
            break
        previous = largest
    return math.sqrt(largest)


@torch.no_grad()
def initialise_spectral(model: nn.Module) -> None:
    """Initialises `model` in place as LipsFormer does (section 4.1.4).

    Linear layers and convolutions: Xavier-normal weights divided by their largest singular value (a convolution
    reshaped to output channels x the rest), so that a linear layer starts with Lipschitz constant 1; linear biases 0,
    convolution biases PyTorch's default. CenterNorm: weight 1, bias 0. Position bias tables: normal with deviation
    0.02, as the official code has them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            module.weight /= spectral_norm(module.weight.flatten(1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, CenterNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)
