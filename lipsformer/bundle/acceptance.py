"""When an answer is accepted: not if its score is too low, or the photo too far from what the model was trained on."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lipsformer.system.errors import InputError
from lipsformer.system.validation import one_line_errors

__all__ = [
    "ACCEPTANCE_NAME",
    "LEAST_TEMPERATURE",
    "MOST_TEMPERATURE",
    "AcceptanceRule",
    "AcceptanceThresholds",
    "FeatureSpace",
    "Refusal",
    "check_temperature",
]

ACCEPTANCE_NAME = "acceptance.safetensors"  # of the rule in a bundle
METADATA_KEY = "lipsformer.acceptance"
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0

# Why an answer is not accepted: the photo is far from the training photos, or the best class has too low a score.
Refusal = Literal["unfamiliar", "low_score"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Portion = Annotated[float, Field(gt=0.0, lt=1.0)]


def check_temperature(value: object) -> None:
    """Checks that logits can be divided by `value`.

    Raises:
        InputError: if it is not a number from 0.01 to 100.
    """
    if not isinstance(value, float) or not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
        raise InputError(
            f"temperature {value!r}: a number from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE} is needed; "
            "calibrate the model again"
        )


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class AcceptanceThresholds:
    """Accepted are photos with a score of at least `min_score` and a distance of at most `max_distance`.

    Of those among them that show one of the classes, at most the share `max_error` is classified wrongly, with the
    probability `confidence` that the choice of the calibration photos did not deceive. `photos` is their number, and
    `coverage` the share of them that was accepted.

    Raises:
        InputError: if a value is out of range.
    """

    min_score: Share
    max_distance: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    max_error: Portion
    confidence: Portion
    coverage: Share
    photos: Annotated[int, Field(ge=1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSpace:
    """Where the training photos are in the space of pooled features: class `means` (K, C) and `whitening` (C, C).

    Both are float32, and the means are whitened already. The distance of a photo is the Mahalanobis distance of its
    features from the nearest class (Lee et al. 2018), divided by the root of C so that about 1 is usual.
    """

    means: NDArray[np.float32]
    whitening: NDArray[np.float32]

    def __post_init__(self) -> None:
        arrays, side = (self.means, self.whitening), self.whitening.shape[-1]
        shaped = self.means.ndim == 2 and len(self.means) > 0 and self.means.shape[1] == side
        if not shaped or self.whitening.shape != (side, side):
            raise InputError(f"acceptance: means {self.means.shape} do not fit whitening {self.whitening.shape}")
        if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays):
            raise InputError("acceptance: means and whitening must be finite float32; calibrate the model again")

    def check_channels(self, channels: int) -> None:
        """Checks that the space is that of features of `channels` channels.

        Raises:
            InputError: if it is not.
        """
        if len(self.whitening) != channels:
            raise InputError(
                f"acceptance: for features of {len(self.whitening)} channels, but the model has {channels}; "
                "calibrate it again"
            )

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distances (N,) of pooled features (N, C), in float64."""
        whitening, means, lengths = self._wide
        whitened = features.astype(np.float64) @ whitening
        squares = (whitened**2).sum(axis=1)[:, None] - 2 * whitened @ means.T + lengths
        nearest: NDArray[np.float64] = np.sqrt(np.maximum(squares.min(axis=1), 0.0) / features.shape[1])
        return nearest

    @functools.cached_property
    def _wide(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The whitening (C, C), the means (K, C) and their squared lengths (K,), converted once."""
        means = self.means.astype(np.float64)
        return self.whitening.astype(np.float64), means, (means**2).sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AcceptanceRule:
    """Thresholds, and the space that the distance is measured in. `lipsformer calibrate --max-error` makes it."""

    thresholds: AcceptanceThresholds
    space: FeatureSpace

    def refusal(self, score: float, distance: float) -> Refusal | None:
        """Why an answer with this score of the best class and this distance is not accepted; None if it is."""
        if not distance <= self.thresholds.max_distance:  # catches NaN too
            return "unfamiliar"
        return None if score >= self.thresholds.min_score else "low_score"

    def to_bytes(self) -> bytes:
        """The rule as a safetensors file."""
        arrays = {"means": self.space.means, "whitening": self.space.whitening}
        return save(arrays, metadata={METADATA_KEY: json.dumps(self.thresholds.to_dict())})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The rule in a safetensors file.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            arrays = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            thresholds = AcceptanceThresholds(**json.loads(header["__metadata__"][METADATA_KEY]))
            space = FeatureSpace(means=arrays["means"], whitening=arrays["whitening"])
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{ACCEPTANCE_NAME}: cannot be read ({error}); calibrate the model again") from None
        return cls(thresholds=thresholds, space=space)
