"""An object store that speaks the protocol of S3 and Google over a real socket: listings, objects, and uploads."""

from __future__ import annotations

import bisect
import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from .running import running

__all__ = ["ObjectStore", "object_store"]

WHEN = "2026-01-01T00:00:00.000Z"


def tags(outer: str, **inner: str) -> bytes:
    """A small XML document."""
    return f"<{outer}>{''.join(f'<{tag}>{text}</{tag}>' for tag, text in inner.items())}</{outer}>".encode()


DENIED = tags("Error", Code="AccessDenied")


class ObjectStore(http.server.ThreadingHTTPServer):
    """One bucket, "photos".

    Attributes:
        objects: content by key. Assign a new dictionary, or use `put`: listings keep the sorted keys.
        page: keys of a page of a listing.
        pages: how many pages were asked for.
        held: the number of the page that is not answered before `released` is set; None for none.
        denied: keys that are answered with 403; "" denies the listing.
        uploads: the parts of each upload that has begun, neither completed nor aborted, by its id.
        begun: how many uploads have begun.
        most_parts: how many parts of an upload are accepted, before the others are answered with 403; None for all.
    """

    page = 1000
    held: int | None = None
    most_parts: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {}
        self.pages = 0
        self.released = threading.Event()
        self.denied: set[str] = set()
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.begun = 0
        self.lock = threading.Lock()

    @property
    def objects(self) -> dict[str, bytes]:
        return self._objects

    @objects.setter
    def objects(self, objects: dict[str, bytes]) -> None:
        self._objects, self.keys = objects, sorted(objects)

    def put(self, key: str, content: bytes) -> None:
        """Makes an object, at once."""
        with self.lock:
            self.objects = {**self.objects, key: content}


class Handler(http.server.BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if (key := self.key()) is None:
            return
        if not key:
            self.answer(200, self.listing(self.query()))
        elif key in self.server.objects:
            self.answer(200, self.server.objects[key])
        else:
            self.answer(404, tags("Error", Code="NoSuchKey"))

    do_HEAD = do_GET  # noqa: N815 - the base's name

    def do_PUT(self) -> None:
        server, content = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (key := self.key()) is None:
            return
        if "uploadId" not in (query := self.query()):
            server.put(key, content)
        else:
            parts = server.uploads.get(query["uploadId"], {})  # none if it was aborted meanwhile
            if server.most_parts is not None and len(parts) >= server.most_parts:
                self.answer(403, DENIED)
                return
            parts[int(query["partNumber"])] = content
        self.answer(200, b"")

    def do_POST(self) -> None:
        server, content = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (key := self.key()) is None:
            return
        if "uploads" in (query := self.query()):
            with server.lock:
                server.begun += 1
                number = str(server.begun)
            server.uploads[number] = {}
            self.answer(200, tags("InitiateMultipartUploadResult", UploadId=number))
            return
        parts = server.uploads.pop(query["uploadId"])
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", content)]
        assert numbers == sorted(parts)
        server.put(key, b"".join(parts[number] for number in numbers))
        self.answer(200, tags("CompleteMultipartUploadResult", ETag="1"))

    def do_DELETE(self) -> None:
        self.server.uploads.pop(self.query()["uploadId"], None)
        self.answer(204, b"")

    def key(self) -> str | None:
        """The key that is asked for; None if it is denied, which is answered already."""
        _, bucket, *rest = unquote(urlsplit(self.path).path).split("/", 2)
        assert bucket == "photos"
        key = rest[0] if rest else ""
        if key not in self.server.denied:
            return key
        self.answer(403, DENIED)
        return None

    def query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    def listing(self, query: dict[str, str]) -> bytes:
        server = self.server
        server.pages += 1
        if server.pages == server.held:
            server.released.wait(60)
        prefix, after = (query.get(name, "") for name in ("prefix", "continuation-token"))
        keys = server.keys
        start = bisect.bisect_right(keys, after) if after else bisect.bisect_left(keys, prefix)
        page = [key for key in keys[start : start + server.page] if key.startswith(prefix)]
        more = len(page) == server.page and keys[start + server.page : start + server.page + 1]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(server.objects[key])}</Size><LastModified>{WHEN}"
            "</LastModified><ETag>1</ETag></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@contextlib.contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store that `s3://photos` and `gs://photos` mean within the block. Google's XML protocol is that of S3."""
    server = ObjectStore()
    with running(server) as url:
        for name, value in {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_METADATA_ENDPOINT": f"{url}/photos",  # asked for credentials if there are none
            "GOOGLE_BASE_URL": url,
            "GOOGLE_ALLOW_HTTP": "true",
            "GOOGLE_BEARER_TOKEN": "token",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
