"""One loaded bundle at work: threads that decode, a queue that batches, a runtime that infers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lipsformer.errors import InputError
from lipsformer.manifest import Manifest, read_manifest
from lipsformer.prediction import Prediction, Predictor, load_bundle
from lipsformer.pretrained import resolve_model
from lipsformer.runtimes import Pixels

from .batching import BatchQueue
from .settings import Settings

__all__ = ["Classification", "Engine", "load_engine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """The best classes of one image by falling score, the batch it was computed in, and milliseconds by stage."""

    predictions: list[Prediction]
    batch: int
    timing_ms: dict[str, float]


class Engine:
    """Classifies uploads with one predictor; `load_engine` makes one. To be started and used in one event loop."""

    def __init__(self, settings: Settings, manifest: Manifest, predictor: Predictor) -> None:
        self.settings = settings
        self.manifest = manifest
        self.predictor = predictor
        self.max_batch = settings.max_batch or manifest.max_batch
        self.queue = BatchQueue(predictor.runtime.infer, max_batch=self.max_batch, max_pending=settings.max_pending)
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch once, so that no client pays for first-time work.

        Raises:
            InputError: if the graph does not give one logit for each class.
        """
        size = self.manifest.preprocessing.image_size
        for batch in (1, self.max_batch):
            logits = self.predictor.runtime.infer(np.zeros((batch, size, size, 3), np.uint8))
            if logits.shape != (batch, len(self.manifest.classes)):
                raise InputError(
                    f"{self.settings.bundle}: the graph answers in shape {logits.shape}, not with "
                    f"{len(self.manifest.classes)} classes for each of {batch} images; export the bundle again"
                )

    async def close(self) -> None:
        """Ends the threads, once the batch that is being computed is done."""
        await self.queue.close()
        await asyncio.to_thread(self._decoders.shutdown, cancel_futures=True)

    async def classify(self, unpack: Callable[[], tuple[bytes, int]]) -> Classification:
        """Classifies the encoded image that `unpack` gives, with the number of classes wanted; it runs in a thread.

        Raises:
            ImageError: if the image is refused.
        """
        start = time.perf_counter()

        def prepare() -> tuple[Pixels, int]:
            image, top_k = unpack()
            return self.predictor.prepare(image, self.settings.limits), top_k

        pixels, top_k = await asyncio.get_running_loop().run_in_executor(self._decoders, prepare)
        decoded = time.perf_counter()
        answer = await self.queue.infer(pixels)
        seconds = {"decode": decoded - start, "queue": answer.waited, "infer": answer.computed}
        return Classification(
            predictions=self.predictor.rank(answer.logits, top_k),
            batch=answer.batch,
            timing_ms={stage: round(value * 1000, 2) for stage, value in seconds.items()},
        )

    def describe(self) -> dict[str, Any]:
        """What runs here, as plain data: classes, model, preprocessing, runtime, provenance and limits."""
        runs = next(file for file in self.manifest.files if file.name == self.predictor.file.name)
        limits = self.settings.limits
        return {
            "model": dict(self.manifest.model),
            "classes": list(self.manifest.classes),
            "preprocessing": self.manifest.preprocessing.to_dict(),
            "runtime": {
                "provider": self.predictor.runtime.provider,
                "file": runs.name,
                "precision": runs.precision,
                "threads": self.settings.threads,
            },
            "parity": dict(runs.parity or {}),
            "metrics": dict(self.manifest.metrics),
            "bundle": {
                "created": self.manifest.created,
                "file": runs.name,
                "file_sha256": runs.sha256,
                "checkpoint_sha256": self.manifest.checkpoint_sha256,
                "versions": dict(self.manifest.versions),
            },
            "limits": {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_batch": self.max_batch,
                "max_pending": self.settings.max_pending,
                "deadline_seconds": self.settings.deadline,
            },
        }


def load_engine(settings: Settings) -> Engine:
    """The engine of the bundle that `settings` names, loaded and not yet warmed up.

    Raises:
        InputError: if the bundle or a setting cannot be used.
        GateError: if a file of the bundle is not what its manifest promises.
    """
    bundle = resolve_model(settings.bundle)
    manifest = read_manifest(bundle)
    if settings.max_batch is not None and settings.max_batch > manifest.max_batch:
        raise InputError(
            f"LIPSFORMER_MAX_BATCH={settings.max_batch}: the export proved batches up to {manifest.max_batch}; "
            "lower it, or export again with a larger --max-batch"
        )
    predictor = load_bundle(
        bundle, manifest, device=settings.device, precision=settings.precision, threads=settings.threads
    )
    return Engine(settings, manifest, predictor)
