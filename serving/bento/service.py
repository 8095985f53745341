"""The BentoML service: each worker opens what is served and answers with it, in front of BentoML's own application."""

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
from lipsformer.serving.pipeline.inference import load
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings, worker_count
from lipsformer.system.console import say
from lipsformer.system.errors import LipsFormerError
from lipsformer.system.hardware import visible_gpus

from .http_protocol import use_limited_http_protocol
from .signals import end_with_master, ignore_hangups, prepare_master, when_hung_up

__all__ = ["Classifier"]

logger = logging.getLogger("lipsformer.serving")

HEALTH = {"/livez", "/readyz", "/healthz"}

use_limited_http_protocol()
ignore_hangups()


class FrontedService(Service[Any]):  # type: ignore[misc]
    """A service that answers by itself: BentoML's application is asked for health and told of start and stop.

    Its middlewares would take longer than ours takes for all else, and keep a set of metrics for every path that was
    ever asked for, which lets a scanner fill memory and disk.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The worker's application."""
        app: ASGIApp = super().to_asgi(is_main)

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] not in HEALTH:
                app_here = bentoml.get_current_service().app
                await app_here(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # without a word, uvicorn would answer 500
            else:
                await app(scope, receive, send)

        return front


@bentoml.service(
    service_class=FrontedService,
    workers=worker_count(os.environ),
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Classifies photos with a bundle that `lipsformer export` wrote."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Once, before any worker: what cannot be served ends the server instead of restarting workers for ever."""
        try:
            settings = Settings.from_environment(os.environ)
            loaded = load(settings, on_fault=lambda _: None)
            if settings.api_keys_file is not None:
                KeyRing(settings.api_keys_file)
        except LipsFormerError as error:
            say(f"lipsformer: {error}")
            raise SystemExit(error.exit_code) from None
        predictor = loaded.runner.predictor
        count = f"{settings.workers} worker{'s'[: settings.workers - 1]}"
        say(f"serving {settings.bundle}: {predictor.file.name} on {predictor.runtime.provider}, {count}")
        prepare_master()
        os.environ.pop("BENTOML_CONTAINERIZED", None)  # BentoML gives up on workers that die in its images

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Loads and warms up; the worker accepts no connection, and so is not ready, before this returns."""
        end_with_master()
        settings = Settings.from_environment(os.environ)
        _take_own_gpu(settings)
        self.observer = Observer.start(
            log_format=settings.log, access_log=settings.access_log, monitoring=settings.monitoring
        )
        keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
        self.served = ModelManager(settings, self.observer.metrics, on_lost=_end_this_worker)
        await self.served.start()
        self.app = create_app(self.served, settings, keys, self.observer)
        when_hung_up(self.served.reload)
        logger.info("worker %d is ready: %s", os.getpid(), self.served.engine.predictor.runtime.provider)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Ends threads and processes; uvicorn has let open requests finish before."""
        await self.served.close()
        await asyncio.to_thread(self.observer.close)

    async def __is_ready__(self) -> bool:  # BentoML asks it on /readyz
        return self.served.running


def _take_own_gpu(settings: Settings) -> None:
    """Lets this worker see one GPU alone, by turns; before CUDA is touched."""
    gpus = visible_gpus(os.environ)
    if gpus and settings.device != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[((server_context.worker_index or 1) - 1) % len(gpus)]


def _end_this_worker() -> None:
    """The runtime is beyond repair: answer what can be answered, and make room for a new worker."""
    os.kill(os.getpid(), signal.SIGTERM)
