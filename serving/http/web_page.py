"""The web page: the shared files and client.js, with headers that admit nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lipsformer.inference.page import MEDIA_TYPES, page_files

__all__ = ["page_routes"]

NOSCRIPT = " Without it, send a photo with POST to /classify."
FOOTER = """<p class="quiet">Photos are classified in memory and never stored.</p>
    <p class="quiet"><a href="info">About this model</a> <a href="openapi.json">API description</a></p>"""
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
    files = page_files(head="", noscript=NOSCRIPT, footer=FOOTER)
    files["client.js"] = (resources.files(__package__) / "client.js").read_bytes()
    return [
        Route(
            "/" if name == "index.html" else f"/{name}",
            _answer_with(content, MEDIA_TYPES[PurePath(name).suffix]),
            methods=["GET"],
        )
        for name, content in sorted(files.items())
    ]


def _answer_with(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
