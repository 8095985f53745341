"""The page that classifies photos, as files: what the server's page and the page without a server share.

Each adds `client.js`, which answers photos. It exports `fetchInfo(onProgress)`, `classify(file, options)`,
`explain(file, signal)` for the heat map, and `command(file, name)`, the same request for a command line, or null.
"""

from __future__ import annotations

from importlib import resources
from pathlib import PurePath

__all__ = ["MEDIA_TYPES", "page_files"]

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_files(*, head: str, noscript: str, footer: str) -> dict[str, bytes]:
    """The shared files by name, with these pieces of HTML in index.html: in its head, without JavaScript, and below."""
    files = {
        file.name: file.read_bytes()
        for file in (resources.files(__package__)).iterdir()
        if PurePath(file.name).suffix in MEDIA_TYPES
    }
    page = files["index.html"].decode()
    for place, piece in (("head", head), ("noscript", noscript), ("footer", footer)):
        page = page.replace(f"<!-- {place} -->", piece)
    return {**files, "index.html": page.encode()}
