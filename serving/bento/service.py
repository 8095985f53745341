"""The BentoML service: each worker process loads the bundle and answers requests in front of BentoML's application."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

import bentoml
from _bentoml_sdk import Service
from bentoml import server_context
from starlette.types import ASGIApp, Receive, Scope, Send

from lipsformer.serving.app import create_app
from lipsformer.serving.http.auth import KeyRing
from lipsformer.serving.observability import Observer
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.pipeline.shadow import load_shadow
from lipsformer.serving.settings import Settings, worker_count
from lipsformer.system.console import say
from lipsformer.system.errors import LipsFormerError
from lipsformer.system.hardware import visible_gpus

from .http_protocol import use_limited_http_protocol
from .monitoring import BentoMonitor, create_monitoring_folder
from .signals import end_with_master, on_hangup, prepare_master, remember_hangups

__all__ = ["Classifier"]

logger = logging.getLogger("lipsformer.serving")

HEALTH = {"/livez", "/readyz", "/healthz"}

use_limited_http_protocol()
remember_hangups()


class FrontedService(Service[Any]):  # type: ignore[misc]
    """A service with its own application. BentoML's application handles health checks, startup and shutdown only.

    BentoML's middleware would take longer than everything else here, and it keeps a set of metrics for every path
    that was ever requested, which lets a scanner fill memory and disk.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The worker's application."""
        app: ASGIApp = super().to_asgi(is_main)

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (path := scope["path"].rstrip("/")) in HEALTH:
                await app({**scope, "path": path}, receive, send)
            elif scope["type"] == "http":
                ours = bentoml.get_current_service().app
                await ours(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # without this, uvicorn answers 500
            else:
                await app(scope, receive, send)

        return front


@bentoml.service(
    service_class=FrontedService,
    workers=worker_count(os.environ),
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Classifies images with a bundle that `lipsformer export` wrote."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Runs once, before any worker: a bad setting or bundle ends the server, and not each worker in turn.

        It loads the bundle, hashes included, and discards it. Each worker hashes the files again, because they may
        change between this check and a later restart of a worker.
        """
        try:
            settings = Settings.from_environment(os.environ)
            if settings.api_keys_file is not None:
                KeyRing(settings.api_keys_file)
            if settings.monitoring is not None:
                create_monitoring_folder(settings.monitoring)
            loaded = LoadedBundle.load(settings, on_fault=lambda _: None)
            load_shadow(settings, loaded.manifest)
        except LipsFormerError as error:
            say(f"lipsformer: {error}")
            raise SystemExit(error.exit_code) from None
        predictor = loaded.runtime.predictor
        count = f"{settings.workers} worker{'s'[: settings.workers - 1]}"
        say(f"serving {settings.bundle}: {predictor.file.name} on {predictor.runtime.provider}, {count}")
        prepare_master()
        os.environ.pop("BENTOML_CONTAINERIZED", None)  # in its images BentoML does not restart dead workers

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Loads and warms up. Until this returns the worker accepts no connection, and so is not ready."""
        end_with_master()
        settings = Settings.from_environment(os.environ)
        _select_gpu(settings)
        folder = settings.monitoring
        self.observer = Observer.start(
            log_format=settings.log,
            access_log=settings.access_log == "on",
            open_monitor=None if folder is None else lambda: BentoMonitor(folder),
        )
        keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
        self.models = ModelManager(settings, self.observer.metrics, on_lost=_end_this_worker)
        await self.models.start()
        self.app = create_app(self.models, settings, keys, self.observer)
        on_hangup(self.models.reload)
        logger.info("worker %d is ready: %s", os.getpid(), self.models.pipeline.predictor.runtime.provider)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Ends threads and processes. uvicorn has let open requests finish before."""
        await self.models.close()
        await asyncio.to_thread(self.observer.close)

    async def __is_ready__(self) -> bool:  # BentoML calls it for /readyz
        return self.models.running


def _select_gpu(settings: Settings) -> None:
    """Makes one GPU visible to this worker, chosen by its index; before CUDA is initialized."""
    gpus = visible_gpus(os.environ)
    if gpus and settings.device != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[((server_context.worker_index or 1) - 1) % len(gpus)]


def _end_this_worker() -> None:
    """Shuts down gracefully after the runtime was lost, so that BentoML starts a new worker."""
    os.kill(os.getpid(), signal.SIGTERM)
