"""An object store that speaks S3's protocol over a real socket: listings in pages, and objects."""

from __future__ import annotations

import contextlib
import http.server
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from .running import running

__all__ = ["ObjectStore", "object_store"]

WHEN = "2026-01-01T00:00:00.000Z"


class ObjectStore(http.server.ThreadingHTTPServer):
    """One bucket, "photos".

    Attributes:
        objects: content by key.
        page: keys of a page of a listing.
        pages: how many pages were asked for.
        denied: keys that are answered with 403; "" denies the listing.
    """

    page = 1000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.pages = 0
        self.denied: set[str] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        _, bucket, *rest = unquote(parts.path).split("/", 2)
        key = rest[0] if rest else ""
        assert bucket == "photos"
        if key in server.denied:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif key:
            found = server.objects.get(key)
            if found is None:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                self.answer(200, found)
        else:
            self.answer(200, self.listing(parse_qs(parts.query)))

    def listing(self, query: dict[str, list[str]]) -> bytes:
        server = self.server
        server.pages += 1
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "continuation-token"))
        keys = sorted(key for key in server.objects if key.startswith(prefix) and key > after)
        page, more = keys[: server.page], len(keys) > server.page
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(server.objects[key])}</Size><LastModified>{WHEN}"
            "</LastModified><ETag>1</ETag></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@contextlib.contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store that `s3://photos` means within the block."""
    server = ObjectStore()
    with running(server) as url:
        for name, value in {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
