"""The HTTP interface: POST /classify, GET /info, and the page at /."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lipsformer.images import ImageError

from .engine import Engine
from .problems import Problem, answer_error
from .uploads import read_upload

__all__ = ["Gateway"]

PAGE = Path(__file__).parent / "page"
DEFAULT_TOP_K = 5
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Gateway:
    """The routes of a server process. `engine` is set once the model is loaded and warm."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.pending = 0
        self.app = Starlette(
            routes=[
                Route("/classify", self.classify, methods=["POST"]),
                Route("/info", self.info),
                Route("/", _page_file("index.html", "text/html")),
                Route("/page.css", _page_file("page.css", "text/css")),
                Route("/page.js", _page_file("page.js", "text/javascript")),
            ],
            exception_handlers=dict.fromkeys((Problem, ImageError, HTTPException, Exception), answer_error),
        )

    async def classify(self, request: Request) -> Response:
        """POST /classify: an image as form field `image` or as the body; `top_k` in the query or the form."""
        engine = self._ready_engine()
        started = time.perf_counter()
        with self._admitted(engine.settings.max_pending):
            try:
                async with asyncio.timeout(engine.settings.timeout):
                    image, fields = await read_upload(request, engine.settings.max_bytes)
                    top_k = _parse_top_k(request.query_params.get("top_k", fields.get("top_k")))
                    answer = await engine.classify(image, top_k)
            except TimeoutError:
                raise Problem(504, "timeout", f"not answered within {engine.settings.timeout} s; try again") from None
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it; the access log does
        return JSONResponse(
            {
                "predictions": [dataclasses.asdict(prediction) for prediction in answer.predictions],
                "provider": engine.predictor.runtime.provider,
                "graph_sha256": engine.manifest.graph().sha256,
                "timing_ms": {
                    "decode": answer.decode_ms,
                    "infer": answer.infer_ms,
                    "total": round((time.perf_counter() - started) * 1000, 2),
                },
            }
        )

    async def info(self, _: Request) -> Response:
        """GET /info: the model, its classes and preprocessing, the provider, parity, and the limits."""
        return JSONResponse(self._ready_engine().info())

    def _ready_engine(self) -> Engine:
        if self.engine is None:
            raise Problem(503, "starting", "the model is being loaded; try again", {"Retry-After": "1"})
        return self.engine

    @contextlib.contextmanager
    def _admitted(self, max_pending: int) -> Iterator[None]:
        """Counts a request in, or refuses it before its body is read."""
        if self.pending >= max_pending:
            raise Problem(503, "overloaded", "too many requests at once; try again", {"Retry-After": "1"})
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1


def _page_file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (PAGE / name).read_bytes()

    async def serve_file(_: Request) -> Response:
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    return serve_file


def _parse_top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    if not text.isdecimal() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise Problem(400, "bad_top_k", f"top_k={text[:20]}: a whole number of at least 1 is needed")
    return int(text)
