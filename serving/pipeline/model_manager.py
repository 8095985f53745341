"""The engine that answers now, and how another takes its place while requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from lipsformer.bundle.manifest import MANIFEST_NAME
from lipsformer.bundle.pretrained import resolve_model
from lipsformer.serving.observability import Metrics
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import LipsFormerError

from .inference import InferencePipeline, load

__all__ = ["ModelManager"]

logger = logging.getLogger("lipsformer.serving")


class ModelManager:
    """Answers with one engine at a time. To be used in one event loop.

    Args:
        settings: of this worker.
        metrics: of this worker.
        on_lost: called if a runtime breaks for good.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_lost = on_lost
        self._users: dict[InferencePipeline, int] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._swapping = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the bundle and puts it to work, and begins to watch it, if that is asked for.

        Raises:
            InputError: if the bundle or a setting cannot be used.
            GateError: if a file of the bundle is not what its manifest promises.
        """
        self.engine = await self._open()
        if self._settings.watch is not None:
            self._watcher = asyncio.create_task(self._watch(self._settings.watch), name="bundle watcher")

    async def close(self) -> None:
        """Ends everything."""
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.gather(*self._retiring, self.engine.close())

    @property
    def running(self) -> bool:
        """Whether requests get answered."""
        return self.engine.queue.running

    @contextlib.contextmanager
    def use(self) -> Iterator[InferencePipeline]:
        """The engine for one request; it is not closed before the request is done with it."""
        engine = self.engine
        self._users[engine] = self._users.get(engine, 0) + 1
        try:
            yield engine
        finally:
            self._users[engine] -= 1

    async def reload(self) -> bool:
        """Loads the bundle anew, checked and warm, and then lets it take over; on any failure all stays as it is.

        Returns:
            Whether another engine answers now.
        """
        async with self._swapping:
            try:
                engine = await self._open()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one goes on
                self._metrics.reloaded("kept")
                reason = str(error) if isinstance(error, LipsFormerError) else repr(error)
                logger.error("the new bundle is not used, the old one goes on: %s", reason)
                return False
            old, self.engine = self.engine, engine
            self._metrics.reloaded("swapped")
            logger.info("%s is served now, with %s", engine.bundle, engine.model)
            retiring = asyncio.create_task(self._retire(old), name="retiring engine")
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            return True

    async def _open(self) -> InferencePipeline:
        loaded = await asyncio.to_thread(load, self._settings, self._metrics.runtime_fault)
        engine = InferencePipeline(loaded, self._settings, self._metrics, self._on_lost)
        try:
            await engine.start()
        except BaseException:
            await engine.close()
            raise
        for fallback in engine.predictor.fallbacks:
            logger.warning("%s", fallback)
            self._metrics.fallbacks.inc()
        self._metrics.runs(
            **engine.model,
            file=engine.file.name,
            sha256=engine.file.sha256,
            fallback=bool(engine.predictor.fallbacks),
        )
        return engine

    async def _retire(self, engine: InferencePipeline) -> None:
        while self._users.get(engine):
            await asyncio.sleep(0.05)
        self._users.pop(engine, None)
        await engine.close()

    async def _watch(self, seconds: int) -> None:
        seen = self._look()
        while True:
            await asyncio.sleep(seconds)
            found = self._look()
            if found is not None and found != seen:
                seen = found
                await self.reload()

    def _look(self) -> tuple[str, int] | None:
        """What changes when the bundle does: the folder that its name leads to, and its manifest's date."""
        try:
            folder = resolve_model(self._settings.bundle).resolve()
            return str(folder), (folder / MANIFEST_NAME).stat().st_mtime_ns
        except (OSError, LipsFormerError):  # between two bundles there may be none
            return None
