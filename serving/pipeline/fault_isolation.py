"""Fault isolation: a fault fails only the images that cause it, and a broken runtime is reopened."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs, Pixels

__all__ = ["FaultError", "IsolatingRuntime", "Outcome", "RuntimeFault", "RuntimeLostError"]

logger = logging.getLogger("lipsformer.serving")

ROUNDS = 2  # per batch size, when its throughput is measured
WORTH = 1.05  # the throughput, relative to the best smaller batch, from which a larger batch is worth the longer wait

Outcome = Outputs | Exception  # of one image: logits (K,) and features (C,)
# An image computed alone after its batch failed, an image that fails alone too, a runtime that was reopened.
RuntimeFault = Literal["retried", "failed", "rebuilt"]


class FaultError(RuntimeError):
    """The runtime's output is invalid."""


class RuntimeLostError(RuntimeError):
    """The runtime is broken and cannot be reopened in this process."""


class IsolatingRuntime:
    """Runs batches in the runtime of a predictor. Use it from one thread at a time.

    Args:
        load: loads the predictor, and loads it again when its runtime is broken.
        on_fault: called with each fault.

    Attributes:
        predictor: the current one.
        channels: number of features of an image, known once it is warm; None if the runtime gives none.
    """

    def __init__(self, load: Callable[[], Predictor], *, on_fault: Callable[[RuntimeFault], None]) -> None:
        self._load = load
        self._on_fault = on_fault
        self.predictor = load()
        self.channels: int | None = None

    def warm_up(self, max_batch: int) -> int:
        """Runs every power of two up to `max_batch`, and that size, so that no client waits for first-time work.

        Returns:
            The batch size beyond which larger ones give no more images per second and only wait longer.

        Raises:
            FaultError: if the runtime does not give one finite logit for each class.
        """
        sizes = sorted({*(2**power for power in range(max_batch.bit_length()) if 2**power < max_batch), max_batch})
        best, best_rate = 1, 0.0
        for size in sizes:
            pixels = self._blank(size)
            features = self._run(pixels).features
            self.channels = None if features is None else features.shape[1]
            seconds = min(self._timed(pixels) for _ in range(ROUNDS))
            if size / seconds > best_rate * WORTH:
                best, best_rate = size, size / seconds
        return best

    def run(self, images: Sequence[Pixels]) -> list[Outcome]:
        """The outputs or the fault of each image (S, S, 3).

        Raises:
            RuntimeLostError: if the runtime is broken and cannot be reopened.
        """
        outcomes = self._try(images)
        if not any(isinstance(outcome, Exception) for outcome in outcomes):
            return outcomes
        if not self._sound():
            self._rebuild()
            return self._try_each(images)
        if len(images) > 1:
            return self._try_each(images)
        self._on_fault("failed")
        return outcomes

    def _try_each(self, images: Sequence[Pixels]) -> list[Outcome]:
        """One image may have failed the batch for all. Alone, only that image fails."""
        outcomes = [self._try([image])[0] for image in images]
        for outcome in outcomes:
            self._on_fault("failed" if isinstance(outcome, Exception) else "retried")
        return outcomes

    def _try(self, images: Sequence[Pixels]) -> list[Outcome]:
        try:
            return list(self._run(np.stack(images)).each())
        except Exception as error:  # noqa: BLE001 - runtimes raise any type, and every image needs an outcome
            logger.error("a batch of %d failed: %r", len(images), error)
            return [error] * len(images)

    def _run(self, pixels: Pixels) -> Outputs:
        logits, features = outputs = self.predictor.runtime.infer(pixels)
        if logits.shape != (len(pixels), len(self.predictor.classes)):
            raise FaultError(f"logits of shape {logits.shape} for {len(pixels)} images")
        if not np.isfinite(logits).all() or not (features is None or np.isfinite(features).all()):
            raise FaultError("outputs that are not finite")
        return outputs

    def _sound(self) -> bool:
        """Whether the runtime still computes what it computed during warm-up."""
        try:
            self._run(self._blank(1))
        except Exception as error:  # noqa: BLE001
            logger.error("the runtime is broken: %r", error)
            return False
        return True

    def _rebuild(self) -> None:
        try:
            self.predictor = self._load()
        except Exception as error:
            raise RuntimeLostError(f"the runtime cannot be reopened: {error!r}") from error
        if not self._sound():
            raise RuntimeLostError("the runtime is still broken after it was reopened")
        self._on_fault("rebuilt")
        logger.warning("the runtime was reopened")

    def _blank(self, size: int) -> Pixels:
        side = self.predictor.preprocessing.image_size
        return np.zeros((size, side, side, 3), np.uint8)

    def _timed(self, pixels: Pixels) -> float:
        start = time.perf_counter()
        self._run(pixels)
        return time.perf_counter() - start
