"""The inference pipeline of one bundle: decoder processes, a batch queue and a runtime."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from lipsformer.bundle.manifest import BundleFile
from lipsformer.images.decoding import DecoderPool
from lipsformer.inference.classification import Classification
from lipsformer.inference.heat_map import HeatMap
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs, Pixels
from lipsformer.serving.observability import DriftMonitor, Metrics, Span
from lipsformer.serving.settings import Settings

from .batching import BatchQueue
from .explanations import Explanations
from .loaded_bundle import LoadedBundle
from .shadow import Shadow

__all__ = ["Answered", "InferencePipeline"]

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The answer to one image, what the runtime saw and gave, the size of its batch, the spans of its stages, and the
    heat map of its best class if one was wanted.
    """

    classification: Classification
    pixels: Pixels
    outputs: Outputs
    batch: int
    spans: tuple[Span, ...]
    heat_map: HeatMap | None = None


class InferencePipeline:
    """Classifies encoded images with one bundle. Create, start, use and close it in one event loop.

    Args:
        loaded: the bundle.
        settings: of this worker.
        metrics: of this worker.
        on_lost: called if the runtime breaks for good.
        shadow: sees a share of the images too, if there is one.

    Attributes:
        drift: compares answers with the reference histograms of the bundle; None if it has none.
    """

    def __init__(
        self,
        loaded: LoadedBundle,
        settings: Settings,
        metrics: Metrics,
        on_lost: Callable[[], None],
        shadow: Shadow | None = None,
    ) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.manifest
        self.runtime = loaded.runtime
        self.max_batch = loaded.max_batch
        self.explanations = None if loaded.explainer is None else Explanations(loaded.explainer)
        self.settings = settings
        self.shadow = shadow
        self.decoders = DecoderPool(
            self.manifest.preprocessing,
            settings.limits,
            processes=settings.threads,
            seconds=settings.decode_timeout,
            memory=settings.decode_memory * MIB,
            on_exit=metrics.decoder_died,
        )
        reference = self.manifest.reference
        self.drift = None if reference is None else DriftMonitor(reference, metrics, window=settings.drift_window)
        self.queue = BatchQueue(self.runtime.run, max_batch=self.max_batch, metrics=metrics, on_lost=on_lost)

    async def start(self) -> None:
        """Starts the decoders and the queue.

        Raises:
            InputError: if decoders cannot be started.
        """
        await self.decoders.start()
        self.queue.start()

    async def close(self) -> None:
        """Ends the processes and the threads, after the batch that is being computed."""
        await self.decoders.close()
        await self.queue.close()
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.close)
        if self.explanations is not None:
            await self.explanations.close()

    async def classify(
        self, image: memoryview | Pixels, top_k: int, *, since: float | None = None, explain: bool = False
    ) -> Answered:
        """Classifies an encoded image, or pixels (S, S, 3) that need no decoding.

        A later `since` puts an encoded image behind others in the decoders' queue. With `explain`, the answer has the
        heat map of its best class, if the bundle has heat maps.

        With `explain`, the answer has the heat map of its best class, if the bundle has heat maps.

        Raises:
            ImageError: if the image is refused.
            Overloaded: if the pipeline is stopping, or too many heat maps are pending.
            Exception: what the runtime raises for this image alone.
        """
        spans, queued = [], time.perf_counter()
        if isinstance(image, memoryview):
            start, image = queued, (await self.decoders.decode(image, since=since)).pixels
            queued = time.perf_counter()
            spans.append(Span(stage="decode", start=start, end=queued))
        answer = await self.queue.infer(image)
        spans.append(Span(stage="queue", start=queued, end=answer.started))
        spans.append(Span(stage="infer", start=answer.started, end=answer.done))
        classification = self.predictor.classify(*answer.outputs, top_k)
        heat_map = None
        if explain and self.explanations is not None:
            asked = time.perf_counter()
            heat_map = await self.explanations.explain(image, classification[0].index)
            spans.append(Span(stage="explain", start=asked, end=time.perf_counter()))
        return Answered(
            classification=classification,
            pixels=image,
            outputs=answer.outputs,
            batch=answer.batch,
            spans=tuple(spans),
            heat_map=heat_map,
        )

    @property
    def predictor(self) -> Predictor:
        """The current predictor; a new one after the runtime was reopened."""
        return self.runtime.predictor

    @property
    def channels(self) -> int | None:
        """Number of features of an image; None if the file that runs gives none."""
        return self.runtime.channels

    @property
    def file(self) -> BundleFile:
        """The bundle's file that the runtime runs."""
        name, precision = self.predictor.file.name, self.predictor.precision  # fp32 and bf16 share a file
        return next(file for file in self.manifest.files if (file.name, file.precision) == (name, precision))

    @property
    def model(self) -> dict[str, str]:
        """Model, provider and precision, as in each response."""
        return {
            "model": str(self.manifest.model["architecture"]),
            "provider": self.predictor.runtime.provider,
            "precision": self.predictor.precision,
        }

    def describe(self) -> dict[str, Any]:
        """Classes, model, preprocessing, runtime, heat maps, calibration, provenance and limits, as plain data."""
        limits = self.settings.limits
        acceptance = self.predictor.acceptance
        return {
            "model": dict(self.manifest.model),
            "classes": list(self.manifest.classes),
            "preprocessing": self.manifest.preprocessing.to_dict(),
            "runtime": {
                "provider": self.predictor.runtime.provider,
                "file": self.file.name,
                "precision": self.file.precision,
                "threads": self.settings.threads,
                "fallbacks": list(self.predictor.fallbacks),
            },
            "heat_maps": None if self.explanations is None else {"stage": self.explanations.stage},
            "parity": dict(self.file.parity or {}),
            "metrics": dict(self.manifest.metrics),
            "calibration": {
                "temperature": self.predictor.temperature,
                "acceptance": None if acceptance is None else acceptance.thresholds.to_dict(),
            },
            "bundle": {
                "created": self.manifest.created,
                "file": self.file.name,
                "file_sha256": self.file.sha256,
                "checkpoint_sha256": self.manifest.checkpoint_sha256,
                "versions": dict(self.manifest.versions),
            },
            "limits": {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_images": self.settings.max_images,
                "max_batch": self.max_batch,
                "max_pending": self.settings.max_pending,
                "deadline_seconds": self.settings.deadline,
                "decode_seconds": self.settings.decode_timeout,
            },
        }
