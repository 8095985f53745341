"""The web application: POST /classify, GET /info and the page, with every refusal told as problem details."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lipsformer.images import ImageError

from .batching import Overloaded
from .body import read_body, while_connected
from .engine import Engine
from .forms import FORM_TYPE, Upload, is_image_type, parse_form
from .problems import Problem, answer_error

__all__ = ["create_app"]

# What a form adds to the bytes of its image: boundaries, part headers and the field top_k.
FORM_OVERHEAD = 16 * 1024
DEFAULT_TOP_K = 5

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    **NOSNIFF,
}
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def create_app(engine: Engine) -> Starlette:
    """The application that answers with `engine`, which must be running by the first request."""
    routes = [
        Route("/classify", partial(_classify, engine=engine), methods=["POST"]),
        Route("/info", partial(_info, engine=engine), methods=["GET"]),
        *(Route(path, _page_asset(*asset), methods=["GET"]) for path, asset in PAGE.items()),
    ]
    errors = (Problem, ImageError, Overloaded, ClientDisconnect, HTTPException, Exception)
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, answer_error))


async def _classify(request: Request, *, engine: Engine) -> Response:
    start = time.perf_counter()
    read_upload = _upload_reader(request.headers.get("content-type", ""))
    query = request.query_params.get("top_k")
    if query is not None:
        _parse_top_k(query)

    def unpack() -> tuple[bytes, int]:
        upload = read_upload(body)
        return upload.image, _parse_top_k(query or upload.top_k)

    try:
        async with asyncio.timeout(engine.settings.deadline):
            with engine.queue.admit():  # before the body is read: what is held in memory stays bounded
                body = await read_body(request, engine.settings.limits.max_bytes + FORM_OVERHEAD)
                read = time.perf_counter()
                result = await while_connected(request, engine.classify(unpack))
    except TimeoutError:
        detail = f"not answered within {engine.settings.deadline} seconds; try again later or send a smaller image"
        raise Problem(504, "deadline_exceeded", detail) from None
    timing = {
        "read": round((read - start) * 1000, 2),
        **result.timing_ms,
        "total": round((time.perf_counter() - start) * 1000, 2),
    }
    content = {
        "predictions": [dataclasses.asdict(prediction) for prediction in result.predictions],
        "model": engine.manifest.model["architecture"],
        "provider": engine.predictor.runtime.provider,
        "batch": result.batch,
        "timing_ms": timing,
    }
    return JSONResponse(content, headers=NOSNIFF)


async def _info(_: Request, *, engine: Engine) -> Response:
    return JSONResponse(engine.describe(), headers=NOSNIFF)


def _page_asset(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files(__package__) / "page" / name).read_bytes()

    async def serve_asset(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return serve_asset


def _upload_reader(content_type: str) -> Callable[[bytes], Upload]:
    """How a body of this type becomes an upload.

    Raises:
        Problem: 415 if it is neither a form nor an image.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == FORM_TYPE:
        return lambda body: parse_form(body, content_type)
    if is_image_type(media_type):
        return lambda body: Upload(image=body, top_k=None)
    raise Problem(
        415,
        "wrong_content_type",
        f"content type '{media_type or 'none'}' cannot be classified; send a form ({FORM_TYPE}) with the photo in the "
        "field 'image', or the photo itself as image/jpeg, image/png and the like",
    )


def _parse_top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Problem(400, "bad_top_k", f"top_k={text[:20]}: a whole number from 1 on is needed")
    return int(text)
