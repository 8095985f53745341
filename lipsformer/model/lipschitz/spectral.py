"""Spectral norms of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spectral_norm", "spectral_norms"]


def spectral_norms(matrices: Tensor) -> Tensor:
    """Largest singular values (...) of matrices (..., m, n), real or complex, in double precision.

    The root of the smaller Gram matrix's largest eigenvalue. As exact as an SVD and, for the layers of a Tiny, far
    cheaper; power iteration costs nearly as much, since the largest singular values of a random matrix lie close
    together.
    """
    matrices = matrices.detach().to(torch.complex128 if matrices.is_complex() else torch.float64)
    scale = matrices.abs().amax(dim=(-2, -1), keepdim=True)
    matrices = matrices / scale.clamp_min(torch.finfo(scale.dtype).tiny)  # so that the squares keep within range
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return largest.clamp_min(0).sqrt() * scale[..., 0, 0]


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value of a 2-D `matrix`; see `spectral_norms`."""
    return float(spectral_norms(matrix))
