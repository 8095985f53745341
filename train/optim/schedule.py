"""Learning-rate schedule: half a cosine, without warm-up."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from `peak` at step 0 down to 0 at step `total`.

    It depends on the step alone: a resumed run has no scheduler state to restore, and a skipped step changes nothing.
    """
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / total))
