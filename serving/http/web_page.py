"""The web page: the files of page/, with headers that admit nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["page_routes"]

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}


def page_routes() -> list[Route]:
    """One route per file of the page; index.html is at /."""
    files = sorted((resources.files(__package__) / "page").iterdir(), key=lambda file: file.name)
    return [
        Route(
            "/" if file.name == "index.html" else f"/{file.name}",
            _answer_with(file.read_bytes(), MEDIA_TYPES[PurePath(file.name).suffix]),
            methods=["GET"],
        )
        for file in files
        if PurePath(file.name).suffix in MEDIA_TYPES
    ]


def _answer_with(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
