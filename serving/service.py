"""The BentoML service: starts and stops an engine in each worker, and mounts the web application on it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import bentoml
from _bentoml_sdk import Service
from starlette.types import ASGIApp, Receive, Scope, Send

from lipsformer.console import say
from lipsformer.errors import LipsFormerError

from .app import PAGE, create_app
from .engine import load_engine
from .settings import Settings, worker_count

__all__ = ["Classifier"]

OWN_PATHS = {"/classify", "/info", "/livez", "/readyz", "/healthz", "/metrics", *PAGE}
UNKNOWN_PATH = "/no-such-path"


async def _dispatch(scope: Scope, receive: Receive, send: Send) -> None:
    """Hands a request to the application of this process: it exists per instance, the mount from the import on."""
    await bentoml.get_current_service().app(scope, receive, send)


class BoundedPaths(Service[Any]):  # type: ignore[misc]
    """A service whose metrics know our own paths alone.

    BentoML keeps a set of metrics for every path that was ever asked for: a scanner would fill memory and disk.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """BentoML's application behind a door that gives every path that is not ours one name."""
        app: ASGIApp = super().to_asgi(is_main)

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] not in OWN_PATHS:
                scope = {**scope, "path": UNKNOWN_PATH, "raw_path": UNKNOWN_PATH.encode()}
            await app(scope, receive, send)

        return door


# The application answers with its own deadline; BentoML's is the net below it.
@bentoml.service(
    service_class=BoundedPaths,
    workers=worker_count(os.environ),
    traffic={"timeout": Settings.from_environment(os.environ).deadline + 5},  # it keeps each request for that long
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_dispatch, path="/", name="web")
class Classifier:
    """Classifies photos with a bundle that `lipsformer export` wrote."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Once, before any worker: a bundle that cannot be served ends the server instead of restarting it for ever."""
        try:
            load_engine(Settings.from_environment(os.environ)).warm_up()
        except LipsFormerError as error:
            say(f"lipsformer: {error}")
            raise SystemExit(error.exit_code) from None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Loads and warms up; the worker accepts no connection, and so is not ready, before this returns."""
        self.engine = await asyncio.to_thread(load_engine, Settings.from_environment(os.environ))
        await asyncio.to_thread(self.engine.warm_up)
        self.engine.queue.start()
        self.app = create_app(self.engine)
        say(f"worker {os.getpid()} is ready: {self.engine.predictor.runtime.provider}")

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Ends the threads; uvicorn has let open requests finish before."""
        await self.engine.close()

    async def __is_ready__(self) -> bool:  # BentoML asks it on /readyz
        return self.engine.queue.running
