"""One bundle at work: processes that decode, a queue that batches, a runtime that infers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipsformer.bundle.manifest import BundleFile, Manifest, read_manifest
from lipsformer.bundle.pretrained import resolve_model
from lipsformer.inference.predictor import Prediction, Predictor
from lipsformer.inference.runtimes import RuntimeOptions
from lipsformer.serving.decoding import DecoderPool
from lipsformer.serving.observability import Metrics, Stage
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import GateError, InputError

from .batching import BatchQueue
from .fault_isolation import FaultError, IsolatingRuntime, RuntimeFault

__all__ = ["Classification", "InferencePipeline", "Loaded", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """The best classes of one image by falling score, the batch it was computed in, and how long each stage took."""

    predictions: list[Prediction]
    batch: int
    stages: tuple[Stage, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A bundle whose files have the promised hashes, with its runtime warmed up, and the batch size that it runs at."""

    bundle: Path
    manifest: Manifest
    runner: IsolatingRuntime
    max_batch: int


class InferencePipeline:
    """Classifies encoded images with one bundle. To be made, started, used and closed in one event loop.

    Args:
        loaded: the bundle.
        settings: of this worker.
        metrics: of this worker.
        on_lost: called if the runtime breaks for good.
    """

    def __init__(self, loaded: Loaded, settings: Settings, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.manifest
        self.runner = loaded.runner
        self.max_batch = loaded.max_batch
        self.settings = settings
        self.decoders = DecoderPool(
            self.manifest.preprocessing,
            settings.limits,
            processes=settings.threads,
            seconds=settings.decode_timeout,
            memory=settings.decode_memory,
            on_exit=metrics.decoder_died,
        )
        self.queue = BatchQueue(self.runner.run, max_batch=self.max_batch, metrics=metrics, on_lost=on_lost)

    async def start(self) -> None:
        """Starts the decoders and the queue.

        Raises:
            InputError: if decoders cannot be started.
        """
        await self.decoders.start()
        self.queue.start()

    async def close(self) -> None:
        """Ends the processes and the thread, once the batch that is being computed is done."""
        await self.decoders.close()
        await self.queue.close()

    async def classify(self, image: memoryview, top_k: int, *, since: float | None = None) -> Classification:
        """Classifies an encoded image; `since` puts it behind others in the queue of the decoders.

        Raises:
            ImageError: if the image is refused.
            Overloaded: if the engine is stopping.
            Exception: what the runtime raises for this image alone.
        """
        start = time.perf_counter()
        pixels = await self.decoders.decode(image, since=since)
        decoded = time.perf_counter()
        answer = await self.queue.infer(pixels)
        return Classification(
            predictions=self.predictor.rank(answer.logits, top_k),
            batch=answer.batch,
            stages=(
                Stage(name="decode", start=start, end=decoded),
                Stage(name="queue", start=decoded, end=answer.started),
                Stage(name="infer", start=answer.started, end=answer.done),
            ),
        )

    @property
    def predictor(self) -> Predictor:
        """What runs now; another one after the runtime was opened anew."""
        return self.runner.predictor

    @property
    def file(self) -> BundleFile:
        """The file of the bundle that runs."""
        return next(file for file in self.manifest.files if file.name == self.predictor.file.name)

    @property
    def model(self) -> dict[str, str]:
        """Model, provider and precision, as each answer names them."""
        return {
            "model": str(self.manifest.model["architecture"]),
            "provider": self.predictor.runtime.provider,
            "precision": self.predictor.precision,
        }

    def describe(self) -> dict[str, Any]:
        """What runs here, as plain data: classes, model, preprocessing, runtime, provenance and limits."""
        limits = self.settings.limits
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
            "parity": dict(self.file.parity or {}),
            "metrics": dict(self.manifest.metrics),
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


def load(settings: Settings, on_fault: Callable[[RuntimeFault], None]) -> Loaded:
    """The bundle that `settings` names, checked, loaded and warmed up. `on_fault` hears of every fault of its runtime.

    Raises:
        InputError: if the bundle or a setting cannot be used.
        GateError: if a file of the bundle is not what its manifest promises, or the graph gives no sound answers.
    """
    bundle = resolve_model(settings.bundle).resolve()  # a link may point elsewhere by the time that a file is opened
    manifest = read_manifest(bundle)
    if settings.max_batch is not None and settings.max_batch > manifest.max_batch:
        raise InputError(
            f"LIPSFORMER_MAX_BATCH={settings.max_batch}: the export proved batches up to {manifest.max_batch}; "
            "lower it, or export again with a larger --max-batch"
        )

    options = RuntimeOptions(device=settings.device, precision=settings.precision, threads=settings.threads)
    runner = IsolatingRuntime(lambda: Predictor.from_bundle(bundle, options, manifest), on_fault=on_fault)
    try:
        max_batch = runner.warm_up(settings.max_batch or manifest.max_batch)
    except FaultError as fault:
        raise GateError(f"{bundle}: {fault}; export the bundle again") from None
    return Loaded(bundle=bundle, manifest=manifest, runner=runner, max_batch=max_batch)
