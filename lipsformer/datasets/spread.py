"""Even samples of a listing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["spread"]


def spread(count: int, total: int) -> NDArray[np.int64]:
    """Up to `count` of the positions 0 to `total` - 1, evenly spread, in order."""
    wanted = min(count, total)
    return (np.arange(wanted) * 2 + 1) * total // (2 * wanted)
