"""A server of one file that misbehaves in the ways of real servers, over a real socket."""

from __future__ import annotations

import contextlib
import http.server
from collections.abc import Iterator, Mapping

from .running import running

__all__ = ["FileServer", "file_server"]


class FileServer(http.server.ThreadingHTTPServer):
    """Answers every path with `content`.

    Attributes:
        cuts: for each request in turn, the number of bytes after which the connection breaks; then it does not.
        etag: what identifies the content; empty for none.
        ranges: whether Range and If-Range are honored.
        headers: sent in place of the usual ones of the same name.
        redirects: from path to address.
        requests: the Range of each request, and the path.
    """

    content = b""
    etag = '"v1"'
    ranges = True
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.headers: Mapping[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        if self.path in server.redirects:
            self.answer(302, {"Location": server.redirects[self.path], "Content-Length": "0"})
            return
        if server.status is not None:
            self.answer(server.status, {"Content-Length": "0"})
            return
        start, content = 0, server.content
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        rest = content[start:]
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(rest))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if server.etag:
            headers["ETag"] = server.etag
        self.answer(206 if start else 200, {**headers, **server.headers})
        with contextlib.suppress(ConnectionError):  # a client that refuses what comes closes the connection
            self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """A running server."""
    with running(server := FileServer()):
        yield server
