"""The answer to one image: its top classes, and whether it is accepted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

from lipsformer.bundle.acceptance import Refusal

__all__ = ["Classification", "Prediction"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class of one image; `score` is its softmax probability."""

    label: str
    index: int
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Sequence[Prediction]):
    """The answer to one image: a sequence of its top classes, highest score first, that knows whether it is accepted.

    `distance` is that of the image's features from the nearest class. If it is too large, `reason` is "unfamiliar": the
    image looks like nothing that the model was trained on. If only the best score is too low, it is "low_score". All
    three are None for a model that was not calibrated for this (`lipsformer calibrate --max-error`), and `reason` is
    None if the answer is accepted.

    No change of the pixels (0 to 1, as the network sees them) that is shorter than `certified_radius` changes the top
    class; None for a model without a certificate.
    """

    predictions: tuple[Prediction, ...]
    accepted: bool | None = None
    reason: Refusal | None = None
    distance: float | None = None
    certified_radius: float | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what the model was not calibrated or certified for is left out."""
        found: dict[str, Any] = {"predictions": [vars(prediction) for prediction in self.predictions]}
        if self.accepted is not None:
            found |= {"accepted": self.accepted, "reason": self.reason, "distance": self.distance}
        if self.certified_radius is not None:
            found["certified_radius"] = self.certified_radius
        return found
