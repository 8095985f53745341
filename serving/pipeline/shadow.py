"""A shadow: a second bundle that sees a share of the images, to learn where it would answer differently.

It computes in a thread, one image at a time on one CPU thread, behind a short queue that drops what does not fit. No
answer waits for it, and its failures are only counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from lipsformer.bundle.manifest import Manifest, read_manifest
from lipsformer.bundle.store import resolve_bundle
from lipsformer.inference.classification import Prediction
from lipsformer.inference.runtimes import Pixels
from lipsformer.serving.observability import Metrics
from lipsformer.serving.observability.background import Background
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import InputError

from .loaded_bundle import LoadedBundle

__all__ = ["Shadow", "check_shadow"]

logger = logging.getLogger("lipsformer.serving")

WAITING_IMAGES = 4
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
        self.manifest = loaded.manifest
        self._runtime = loaded.runtime
        self._share = share
        self._due = 0.0
        self._metrics = metrics
        self._samples = Background(self._compare_all, name="shadow", capacity=WAITING_IMAGES)

    @classmethod
    def load(cls, settings: Settings, manifest: Manifest, metrics: Metrics) -> Shadow | None:
        """Loads the shadow that `settings` name, for a bundle with `manifest`; None if they name none.

        Raises:
            InputError: if it cannot be used, or does not see the same pixels.
            GateError: if a file of it does not match its manifest.
        """
        if settings.shadow is None:
            return None
        changes = {"bundle": settings.shadow, "precision": None, "threads": 1, "max_batch": 1}
        loaded = LoadedBundle.load(settings.model_copy(update=changes), on_fault=lambda _: None)
        check_shadow(settings, manifest, loaded.manifest)
        return cls(loaded, share=settings.shadow_share, metrics=metrics)

    def offer(self, pixels: Pixels, answer: Prediction, request_id: str) -> None:
        """Takes the share of the images that is due; returns at once."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        if not self._samples.put(Sample(pixels.copy(), answer, request_id)):  # a view would keep its whole request
            self._metrics.shadowed("dropped")

    def close(self) -> None:
        """Ends the thread after the images that wait, or abandons it after a few seconds."""
        self._samples.close(CLOSE_SECONDS)

    def _compare_all(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            try:
                self._compare(sample)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is the shadow's and nobody else's
                self._metrics.shadowed("failed")
                logger.warning("the shadow failed: %r", error)

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


def check_shadow(settings: Settings, manifest: Manifest, shadow: Manifest | None = None) -> None:
    """Checks that the shadow that `settings` name, if any, is a bundle that sees the same pixels as another.

    Args:
        settings: name the shadow.
        manifest: of the other bundle.
        shadow: of the shadow, if it has been read.

    Raises:
        InputError: if it is not.
        GateError: if a file of it does not match its manifest.
    """
    if settings.shadow is None:
        return
    found = shadow or read_manifest(resolve_bundle(settings.shadow))
    if found.preprocessing != manifest.preprocessing:
        raise InputError(
            f"LIPSFORMER_SHADOW={settings.shadow}: its preprocessing is not that of the served bundle, and images are "
            "decoded once; export one with the same image size and crop"
        )
