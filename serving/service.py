"""The BentoML service: starts and stops an engine in each worker, and mounts the web application on it."""

from __future__ import annotations

import asyncio
import os

import bentoml
from starlette.types import Receive, Scope, Send

from lipsformer.console import say
from lipsformer.errors import LipsFormerError

from .app import create_app
from .engine import load_engine
from .settings import Settings, worker_count

__all__ = ["Classifier"]


async def _dispatch(scope: Scope, receive: Receive, send: Send) -> None:
    """Hands a request to the application of this process: it exists per instance, the mount from the import on."""
    await bentoml.get_current_service().app(scope, receive, send)


# The application answers with its own deadline; BentoML's is the net below it.
@bentoml.service(
    workers=worker_count(os.environ),
    traffic={"timeout": 300},
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
