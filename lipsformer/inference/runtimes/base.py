"""The runtime interface, its options, and the tensor names of an exported graph."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.hardware import check_device

__all__ = ["INPUT_NAME", "ONNX_METADATA_KEY", "OUTPUT_NAME", "Logits", "Pixels", "Runtime", "RuntimeOptions"]

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
Logits = NDArray[np.float32]  # (N, K)

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
ONNX_METADATA_KEY = "lipsformer"  # of an exported graph's metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a model runs.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: which of a bundle's precisions; by default the first that it was exported with.
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if `device` is unknown.
    """

    device: str = "auto"
    precision: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_device(self.device)


class Runtime(Protocol):
    """Anything that turns pixels into logits.

    `provider` names what actually runs the model. A requested provider that is silently replaced is an error.
    """

    provider: str

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        ...
