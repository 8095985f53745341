"""The inference pipeline of one bundle: decoder processes, a batch queue and a runtime."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from lipsformer.bundle.manifest import BundleFile, Manifest, read_manifest
from lipsformer.bundle.store import resolve_bundle
from lipsformer.images.decoding import DecoderPool
from lipsformer.inference.heat_map import GraphExplainer, HeatMap
from lipsformer.inference.predictor import Classification, Predictor
from lipsformer.inference.runtimes import RuntimeOptions
from lipsformer.serving.observability import Metrics, Span
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import GateError, InputError

from .batching import BatchQueue
from .explanations import Explanations
from .fault_isolation import FaultError, IsolatingRuntime, RuntimeFault

__all__ = ["Answered", "InferencePipeline", "LoadedBundle"]

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The answer to one image, the size of its batch, the spans of its stages, and its heat map if one was wanted."""

    classification: Classification
    batch: int
    spans: tuple[Span, ...]
    heat_map: HeatMap | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedBundle:
    """A bundle with verified hashes, its warm runtime, and the largest batch that is worth running.

    `explainer` draws its heat maps, on one thread, if it was exported with them.
    """

    bundle: Path
    manifest: Manifest
    runtime: IsolatingRuntime
    max_batch: int
    explainer: GraphExplainer | None

    @classmethod
    def load(cls, settings: Settings, on_fault: Callable[[RuntimeFault], None]) -> Self:
        """Verifies, loads and warms up the bundle that `settings` name; `on_fault` gets every fault of its runtime.

        Raises:
            InputError: if the bundle or a setting cannot be used.
            GateError: if a file of the bundle does not match its manifest, or the model gives no finite outputs.
        """
        bundle = resolve_bundle(settings.bundle).resolve()  # a link may point elsewhere by the time a file is opened
        manifest = read_manifest(bundle)
        if settings.max_batch is not None and settings.max_batch > manifest.max_batch:
            raise InputError(
                f"LIPSFORMER_MAX_BATCH={settings.max_batch}: the export verified batches up to {manifest.max_batch}; "
                "lower it, or export again with a larger --max-batch"
            )

        options = RuntimeOptions(device=settings.device, precision=settings.precision, threads=settings.threads)
        runtime = IsolatingRuntime(lambda: Predictor.from_bundle(bundle, options, manifest), on_fault=on_fault)
        try:
            max_batch = runtime.warm_up(settings.max_batch or manifest.max_batch)
        except FaultError as fault:
            raise GateError(f"{bundle}: {fault}; export the bundle again") from None
        heat_maps = runtime.predictor.heat_maps
        explainer = None if heat_maps is None else GraphExplainer(heat_maps, threads=1)
        return cls(bundle=bundle, manifest=manifest, runtime=runtime, max_batch=max_batch, explainer=explainer)


class InferencePipeline:
    """Classifies encoded images with one bundle. Create, start, use and close it in one event loop.

    Args:
        loaded: the bundle.
        settings: of this worker.
        metrics: of this worker.
        on_lost: called if the runtime breaks for good.
    """

    def __init__(self, loaded: LoadedBundle, settings: Settings, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.manifest
        self.runtime = loaded.runtime
        self.max_batch = loaded.max_batch
        self.explanations = None if loaded.explainer is None else Explanations(loaded.explainer)
        self.settings = settings
        self.decoders = DecoderPool(
            self.manifest.preprocessing,
            settings.limits,
            processes=settings.threads,
            seconds=settings.decode_timeout,
            memory=settings.decode_memory * MIB,
            on_exit=metrics.decoder_died,
        )
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
        if self.explanations is not None:
            await self.explanations.close()

    async def classify(
        self, encoded: memoryview, top_k: int, *, since: float | None = None, explain: bool = False
    ) -> Answered:
        """Classifies an encoded image; a later `since` puts it behind others in the decoders' queue.

        With `explain`, the answer has the heat map of its best class, if the bundle has heat maps.

        Raises:
            ImageError: if the image is refused.
            Overloaded: if the pipeline is stopping, or too many heat maps are pending.
            Exception: what the runtime raises for this image alone.
        """
        start = time.perf_counter()
        image = await self.decoders.decode(encoded, since=since)
        decoded = time.perf_counter()
        answer = await self.queue.infer(image.pixels)
        classification = self.predictor.classify(*answer.outputs, top_k)
        spans = [
            Span(stage="decode", start=start, end=decoded),
            Span(stage="queue", start=decoded, end=answer.started),
            Span(stage="infer", start=answer.started, end=answer.done),
        ]
        heat_map = None
        if explain and self.explanations is not None:
            asked = time.perf_counter()
            heat_map = await self.explanations.explain(image.pixels, classification[0].index)
            spans.append(Span(stage="explain", start=asked, end=time.perf_counter()))
        return Answered(classification=classification, batch=answer.batch, spans=tuple(spans), heat_map=heat_map)

    @property
    def predictor(self) -> Predictor:
        """The current predictor; a new one after the runtime was reopened."""
        return self.runtime.predictor

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
