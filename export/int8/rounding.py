"""Rounding of weights that makes up for its own errors on real images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["round_weights"]

DAMPING = 0.1  # of the mean square of an input, added to all: so that no rare input moves a weight far


def round_weights(
    weights: NDArray[np.float64], scales: NDArray[np.float32], moments: NDArray[np.float64], largest: int
) -> NDArray[np.int8]:
    """Integers (in, out) whose product with real inputs is near that of `weights`, after GPTQ (Frantar et al. 2023).

    The weights of one input after the other are rounded. What that changes is taken up by those that are still to come,
    as far as their inputs go with it: U, with U'U the inverse of the moments, has by how much. Nearest integers change
    each product several times more, if inputs are as alike as those of photos.

    Args:
        weights: (in, out).
        scales: the step of each output, (out,).
        moments: sum of x x' over the inputs x of real images, (in, in).
        largest: the largest integer.
    """
    damped = moments + DAMPING * np.trace(moments) / len(moments) * np.eye(len(moments)) + 1e-30 * np.eye(len(moments))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weights.copy()
    found = np.empty(weights.shape, np.int8)
    for index, factors in enumerate(upper):
        found[index] = np.clip(np.rint(left[index] / scales), -largest, largest)
        error = (left[index] - found[index] * scales.astype(np.float64)) / factors[index]
        left[index + 1 :] -= factors[index + 1 :, None] * error
    return found
