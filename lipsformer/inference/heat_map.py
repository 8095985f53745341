"""Heat maps: which parts of an image spoke for a class, and which against it."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .runtimes import Pixels

__all__ = ["Explainer", "HeatMap"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """Contributions (H, W) of the tokens of a stage (1 to 4) to the calibrated logit of class `index`.

    `bias` is the head's bias of the class, the part of the logit that no pixel decides. In stage 4 the contributions
    sum to `logit` - `bias`.
    """

    contributions: NDArray[np.float32]
    index: int
    logit: float
    bias: float
    stage: int

    @property
    def sum(self) -> float:
        """The sum of the contributions."""
        return float(self.contributions.sum(dtype=np.float64))

    @property
    def completeness(self) -> float | None:
        """Their sum over logit - bias: 1 if the map accounts for all of the logit; None if that is bias alone."""
        return self.sum / (self.logit - self.bias) if self.logit != self.bias else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "index": self.index,
            "logit": self.logit,
            "bias": self.bias,
            "sum": self.sum,
            "completeness": self.completeness,
            "stage": self.stage,
            "map": self.contributions.tolist(),
        }


class Explainer(Protocol):
    """Anything that draws heat maps, all of one `stage` (1 to 4)."""

    stage: int

    def explain(self, pixels: Pixels, index: int) -> HeatMap:
        """The heat map of pixels (S, S, 3) for class `index`."""
        ...
