"""A shadow: a second bundle that sees a share of the images, to learn where it would answer differently.

It computes one image at a time, behind a short queue that drops what does not fit, and rests once it has had its part
of the cores' time. A thread of low priority would cost more: the system may suspend it while it holds Python's lock,
and all others wait. No answer waits for the shadow, and its failures are only counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lipsformer.bundle.manifest import Manifest
from lipsformer.inference.classification import Prediction
from lipsformer.inference.runtimes import Pixels
from lipsformer.serving.observability import Metrics
from lipsformer.serving.observability.background import Background
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores

from .loaded_bundle import LoadedBundle

__all__ = ["Shadow", "check_shadow", "load_shadow"]

logger = logging.getLogger("lipsformer.serving")

WAITING_IMAGES = 4
LOAD = 0.05  # of the time of all cores: what it may take, and what it has not used stays for CREDIT_SECONDS
CREDIT_SECONDS = 1.0
CLOSE_SECONDS = 2.0


class Sample(NamedTuple):
    """An image, the answer that its client got, and the id of the request."""

    pixels: Pixels
    answer: Prediction
    request_id: str


class Shadow:
    """Compares the top classes of a second bundle with those that were answered.

    Args:
        loaded: the second bundle.
        share: of the images that it sees.
        metrics: count the outcomes.
    """

    def __init__(self, loaded: LoadedBundle, *, share: float, metrics: Metrics) -> None:
        self._runtime = loaded.runtime
        self._share = share
        self._due = 0.0
        self._rests_until = 0.0
        self._metrics = metrics
        self._samples = Background(self._compare_all, name="shadow", capacity=WAITING_IMAGES)

    def offer(self, pixels: Pixels, answer: Prediction, request_id: str) -> None:
        """Takes the share of the images that is due; returns at once."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        resting = time.monotonic() < self._rests_until  # if not, a copy: a view would keep its whole request
        if resting or not self._samples.put(Sample(pixels.copy(), answer, request_id)):
            self._metrics.shadowed("dropped")

    def close(self) -> None:
        """Ends the thread after the images that wait, or abandons it after a few seconds."""
        self._samples.close(CLOSE_SECONDS)

    def _compare_all(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            started = time.monotonic()
            try:
                self._compare(sample)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is the shadow's and nobody else's
                self._metrics.shadowed("failed")
                logger.warning("the shadow failed: %r", error)
            finally:
                taken = time.monotonic() - started
                self._rests_until = max(self._rests_until, started - CREDIT_SECONDS) + taken / (LOAD * cores())

    def _compare(self, sample: Sample) -> None:
        (outcome,) = self._runtime.run([sample.pixels])
        if isinstance(outcome, Exception):
            raise outcome
        found, answer = self._runtime.predictor.classify(*outcome, 1)[0], sample.answer
        if found.label == answer.label:
            self._metrics.shadowed("agreed")
            return
        self._metrics.shadowed("disagreed")
        fields = {
            "request_id": sample.request_id,
            "label": answer.label,
            "score": round(answer.score, 4),
            "shadow_label": found.label,
            "shadow_score": round(found.score, 4),
        }
        logger.info("the shadow disagrees", extra={"fields": fields})


def load_shadow(settings: Settings, manifest: Manifest) -> LoadedBundle | None:
    """The bundle of the shadow that `settings` name, for a served bundle with `manifest`; None if they name none.

    Raises:
        InputError: if it cannot be used, or does not see the same pixels.
        GateError: if a file of it does not match its manifest, or the model gives no finite outputs.
    """
    if settings.shadow is None:
        return None
    changes = {"bundle": settings.shadow, "precision": None, "threads": 1, "max_batch": 1}
    loaded = LoadedBundle.load(settings.model_copy(update=changes), on_fault=lambda _: None, explain=False)
    check_shadow(settings.shadow, loaded.manifest, manifest)
    return loaded


def check_shadow(shadow: Path, manifest: Manifest, served: Manifest) -> None:
    """Checks that the bundle `shadow` with `manifest` sees the same pixels as the `served` one.

    Raises:
        InputError: if it does not.
    """
    if manifest.preprocessing != served.preprocessing:
        raise InputError(
            f"LIPSFORMER_SHADOW={shadow}: its preprocessing is not that of the served bundle, and images are decoded "
            "once; export one with the same image size and crop"
        )
