"""Downloading files over HTTP, atomically.

Not with pooch or requests: their errors quote the whole URL, with the signature in its query string.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .atomic import atomic_write
from .errors import InputError

__all__ = ["CHUNK_BYTES", "DownloadError", "download", "open_url", "read_chunk"]

STALL_TIMEOUT_SECONDS = 10
CHUNK_BYTES = 2**20


class DownloadError(InputError):
    """A failed download; `status` is the HTTP status and `headers` its headers, if the server refused."""

    def __init__(self, message: str, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def download(url: str, target: Path, *, canceled: Callable[[], bool] = lambda: False) -> None:
    """Downloads an http(s) URL to `target`, which appears only once it is complete. No message shows the query string.

    Args:
        url: the address.
        target: the file to write.
        canceled: polled after each chunk; the download stops once it returns true.

    Raises:
        DownloadError: if the server cannot be reached, refuses, or closes the connection early.
        InputError: if `target` cannot be written.
    """
    shown = url.partition("?")[0]
    with open_url(url) as response, atomic_write(target) as draft:
        expected = response.headers.get("Content-Length")
        received = 0
        with draft.open("wb") as file:
            while chunk := read_chunk(response, shown):
                file.write(chunk)
                received += len(chunk)
                if canceled():
                    raise DownloadError(f"{shown}: canceled after {received} bytes; run it again")
        if expected is not None and received != int(expected):
            raise DownloadError(f"{shown}: cut off after {received} of {expected} bytes; run it again")


def open_url(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """The `http.client.HTTPResponse` to a GET request. Follows redirects, but never from https to http.

    Raises:
        DownloadError: if `url` is no http(s) URL, or the server cannot be reached or refuses.
    """
    shown = url.partition("?")[0]
    if not shown.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{shown}: not an http or https URL; give one")
    request = urllib.request.Request(url, headers={"User-Agent": "lipsformer", **(headers or {})})  # noqa: S310 - checked above
    try:
        return urllib.request.build_opener(_SafeRedirects).open(request, timeout=STALL_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        problem = "a redirect without end" if 300 <= error.code < 400 else error.reason
        message = f"{shown}: the server answers {error.code} {problem}; check the URL"
        raise DownloadError(message, error.code, dict(error.headers)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DownloadError(f"{shown}: cannot be reached ({reason}); check the URL and the network") from None


def read_chunk(response: http.client.HTTPResponse, shown: str) -> bytes:
    """The next bytes of a response, at most `CHUNK_BYTES`; empty at its end.

    Raises:
        DownloadError: about the URL `shown`, if the connection breaks.
    """
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:  # an OSError of the network, not of the disk
        raise DownloadError(f"{shown}: cut off ({error or type(error).__name__}); run it again") from None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError("it redirects from https to an address without encryption")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
