"""The model of a server process: bytes of an image in, ranked classes out."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lipsformer.manifest import Manifest, read_manifest
from lipsformer.prediction import Prediction, Predictor, load_predictor

from .batching import MicroBatcher
from .settings import Settings

__all__ = ["Answer", "Engine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The best classes of an image, and the milliseconds of decoding it and of waiting for and running the model."""

    predictions: list[Prediction]
    decode_ms: float
    infer_ms: float


class Engine:
    """Loads a bundle and answers requests; images are decoded in threads, inference is batched.

    Raises:
        InputError: if the bundle or the device cannot be used.
        GateError: if a file of the bundle is not what its manifest promises.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.manifest: Manifest = read_manifest(settings.bundle)
        self.predictor: Predictor = load_predictor(settings.bundle, settings.device, settings.threads)
        self._warm_up()
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._batcher = MicroBatcher(self.predictor.runtime.infer, self.manifest.max_batch)

    async def classify(self, image: bytes, top_k: int) -> Answer:
        """Classifies an encoded image.

        Raises:
            ImageError: if the image is refused.
        """
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self.predictor.prepare, image, self.settings.limits)
        decoded = time.perf_counter()
        logits = await self._batcher.submit(pixels)
        return Answer(
            predictions=self.predictor.rank(logits, top_k),
            decode_ms=round((decoded - started) * 1000, 2),
            infer_ms=round((time.perf_counter() - decoded) * 1000, 2),
        )

    def info(self) -> dict[str, Any]:
        """What is served, by what, and what is accepted."""
        manifest, graph = self.manifest, self.manifest.graph()
        return {
            "model": dict(manifest.model),
            "classes": list(manifest.classes),
            "metrics": dict(manifest.metrics),
            "preprocessing": manifest.preprocessing.to_dict(),
            "provider": self.predictor.runtime.provider,
            "precision": graph.precision,
            "graph_sha256": graph.sha256,
            "checkpoint_sha256": manifest.checkpoint_sha256,
            "parity": dict(manifest.parity),
            "limits": dataclasses.asdict(self.settings.limits),
            "max_batch": manifest.max_batch,
        }

    async def close(self) -> None:
        """Stops the threads; what is being computed is finished."""
        await self._batcher.close()
        self._decoders.shutdown()

    def _warm_up(self) -> None:
        """Runs the smallest and the largest batch, so that no request pays for what the runtime does only once."""
        size = self.manifest.preprocessing.image_size
        for batch in (1, self.manifest.max_batch):
            self.predictor.runtime.infer(np.zeros((batch, size, size, 3), dtype=np.uint8))
