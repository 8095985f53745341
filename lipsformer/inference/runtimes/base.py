"""The runtime interface, its options, and the tensor names of an exported graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.hardware import check_device

__all__ = [
    "FEATURES_NAME",
    "IMAGES_NAME",
    "INPUT_NAME",
    "LOGITS_NAME",
    "ONNX_METADATA_KEY",
    "Features",
    "GraphRuntime",
    "Logits",
    "Outputs",
    "Pixels",
    "Runtime",
    "RuntimeOptions",
]

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
Logits = NDArray[np.float32]  # (N, K)
Features = NDArray[np.float32]  # (N, C)

INPUT_NAME = "pixels"
IMAGES_NAME = "images"  # the input of a whole-image graph, (batch, H, W, 3) of any size
LOGITS_NAME = "logits"
FEATURES_NAME = "features"  # the pooled features that the head classifies; graphs of format 2 lack them
ONNX_METADATA_KEY = "lipsformer"  # of an exported graph's metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a model runs.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: which of a bundle's precisions; by default what `open_best` chooses.
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if `device` is unknown.
    """

    device: str = "auto"
    precision: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_device(self.device)


class Outputs(NamedTuple):
    """Calibrated logits (N, K), and the pooled features (N, C) before the head; None if a graph does not give them."""

    logits: Logits
    features: Features | None

    def at(self, where: int | slice | NDArray[np.int64]) -> Outputs:
        """Those of the images at these positions; at a single one they are (K,) and (C,)."""
        return Outputs(self.logits[where], None if self.features is None else self.features[where])

    def each(self) -> Iterator[Outputs]:
        """Those of one image after the other, (K,) and (C,)."""
        return map(self.at, range(len(self.logits)))

    @staticmethod
    def joined(parts: Sequence[Outputs]) -> Outputs:
        """Those of several batches together. All of them have features, or none has."""
        features = [part.features for part in parts if part.features is not None]
        return Outputs(np.concatenate([part.logits for part in parts]), np.concatenate(features) if features else None)


class Runtime(Protocol):
    """Anything that turns pixels into logits and features.

    `provider` names what actually runs the model. A requested provider that is silently replaced is an error.
    """

    provider: str

    def infer(self, pixels: Pixels) -> Outputs:
        """Logits (N, K) and features (N, C) of pixels (N, S, S, 3)."""
        ...


class GraphRuntime(Runtime, Protocol):
    """A runtime of an exported graph, which has a fixed image size S.

    `outputs` is the number of logits K, `channels` that of features C, None if the graph gives none.
    """

    image_size: int
    outputs: int
    channels: int | None
