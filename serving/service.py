"""The BentoML service. `lipsformer serve`, `bentoml serve` and a built Bento all start it.

The bundle and everything else come from the environment, see `settings.py`.
"""

from __future__ import annotations

import bentoml

from .app import Gateway
from .engine import Engine
from .settings import Settings

__all__ = ["Classifier"]

gateway = Gateway()


@bentoml.asgi_app(gateway.app, path="/")
@bentoml.service(name="lipsformer", workers=Settings.from_environment().workers)
class Classifier:
    """Image classification over HTTP; ready once the model is loaded and warm."""

    def __init__(self) -> None:
        gateway.engine = Engine(Settings.from_environment())

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """Called when the process is to end, after the last answer."""
        if gateway.engine is not None:
            await gateway.engine.close()
            gateway.engine = None
