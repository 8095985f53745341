"""The model manager: the current pipeline, and reloading a new bundle without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from lipsformer.bundle.manifest import MANIFEST_NAME
from lipsformer.bundle.store import resolve_bundle
from lipsformer.serving.observability import Metrics
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import LipsFormerError

from .inference import InferencePipeline
from .loaded_bundle import LoadedBundle
from .shadow import Shadow, load_shadow

__all__ = ["ModelManager"]

logger = logging.getLogger("lipsformer.serving")


class ModelManager:
    """Keeps one pipeline current. Use it in one event loop.

    Args:
        settings: of this worker.
        metrics: of this worker.
        on_lost: called if a runtime cannot be reopened.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_lost = on_lost
        self._users: dict[InferencePipeline, int] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the bundle and, if the settings say so, starts watching it for changes.

        Raises:
            InputError: if the bundle or a setting cannot be used.
            GateError: if a file of the bundle does not match its manifest.
        """
        self.pipeline = await self._open()
        if self._settings.watch is not None:
            self._watcher = asyncio.create_task(self._watch(self._settings.watch), name="bundle watcher")

    async def close(self) -> None:
        """Closes the current pipeline and those that are retiring."""
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.gather(*self._retiring, self.pipeline.close())

    @property
    def running(self) -> bool:
        """Whether requests are answered."""
        return self.pipeline.queue.running

    @contextlib.contextmanager
    def use(self) -> Iterator[InferencePipeline]:
        """The pipeline for one request; it is not closed before the context is left."""
        pipeline = self.pipeline
        self._users[pipeline] = self._users.get(pipeline, 0) + 1
        try:
            yield pipeline
        finally:
            self._users[pipeline] -= 1

    async def reload(self) -> bool:
        """Loads the bundle again and switches to it once it is verified and warm; keeps the old one on any failure.

        Returns:
            Whether a new pipeline answers now.
        """
        async with self._reloading:
            try:
                pipeline = await self._open()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one stays
                self._metrics.reloaded("kept")
                reason = str(error) if isinstance(error, LipsFormerError) else repr(error)
                logger.error("the new bundle is not used, the old one stays: %s", reason)
                return False
            old, self.pipeline = self.pipeline, pipeline
            if old.drift is not None:
                old.drift.close()
            self._metrics.reloaded("swapped")
            logger.info("serving %s now, with %s", pipeline.bundle, pipeline.model)
            retiring = asyncio.create_task(self._retire(old), name="retiring pipeline")
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            return True

    async def _open(self) -> InferencePipeline:
        loaded = await asyncio.to_thread(LoadedBundle.load, self._settings, self._metrics.runtime_fault)
        second = await asyncio.to_thread(load_shadow, self._settings, loaded.manifest)
        share = self._settings.shadow_share
        shadow = None if second is None else Shadow(second, share=share, metrics=self._metrics)
        pipeline = InferencePipeline(loaded, self._settings, self._metrics, self._on_lost, shadow)
        try:
            await pipeline.start()
        except BaseException:
            await pipeline.close()
            raise
        for fallback in pipeline.predictor.fallbacks:
            logger.warning("%s", fallback)
            self._metrics.fallbacks.inc()
        self._metrics.runs(
            **pipeline.model,
            file=pipeline.file.name,
            sha256=pipeline.file.sha256,
            fallback=bool(pipeline.predictor.fallbacks),
        )
        return pipeline

    async def _retire(self, pipeline: InferencePipeline) -> None:
        while self._users.get(pipeline):
            await asyncio.sleep(0.05)
        self._users.pop(pipeline, None)
        await pipeline.close()

    async def _watch(self, seconds: int) -> None:
        seen = self._stamp()
        while True:
            await asyncio.sleep(seconds)
            found = self._stamp()
            if found is not None and found != seen:
                seen = found
                await self.reload()

    def _stamp(self) -> tuple[str, int] | None:
        """The folder that the bundle's name resolves to and its manifest's date, which change with the bundle."""
        try:
            folder = resolve_bundle(self._settings.bundle).resolve()
            return str(folder), (folder / MANIFEST_NAME).stat().st_mtime_ns
        except (OSError, LipsFormerError):  # there may be none between two bundles
            return None
