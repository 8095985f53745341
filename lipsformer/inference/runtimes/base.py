"""The interface of a runtime, and the names that an exported graph gives to what goes in and comes out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["INPUT_NAME", "METADATA_KEY", "OUTPUT_NAME", "Logits", "Pixels", "Runtime"]

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
Logits = NDArray[np.float32]  # (N, K)

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
METADATA_KEY = "lipsformer"


class Runtime(Protocol):
    """Something that classifies pixels.

    `provider` names what really runs it: one that was asked for and silently replaced is an error, not a slow answer.
    """

    provider: str

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        ...
