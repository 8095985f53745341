"""Downloading files over HTTP, atomically.

Not with pooch or requests: their errors quote the whole URL, with the signature in its query string.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError

__all__ = ["DownloadError", "download"]

STALL_TIMEOUT_SECONDS = 10
CHUNK_BYTES = 2**20


class DownloadError(InputError):
    """A failed download; `status` is the HTTP status, if the server answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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
    if not shown.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{shown}: not an http or https URL; give one")
    request = urllib.request.Request(url, headers={"User-Agent": "lipsformer"})  # noqa: S310 - checked above
    try:
        response = urllib.request.urlopen(request, timeout=STALL_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(
            f"{shown}: the server answers {error.code} {error.reason}; check the URL", error.code
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DownloadError(f"{shown}: cannot be reached ({reason}); check the URL and the network") from None
    with response, atomic_write(target) as draft:
        expected = response.headers.get("Content-Length")
        received = 0
        with draft.open("wb") as file:
            while chunk := _read_chunk(response, shown):
                file.write(chunk)
                received += len(chunk)
                if canceled():
                    raise DownloadError(f"{shown}: canceled after {received} bytes; run it again")
        if expected is not None and received != int(expected):
            raise DownloadError(f"{shown}: cut off after {received} of {expected} bytes; run it again")


def _read_chunk(response: http.client.HTTPResponse, shown: str) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:  # an OSError of the network, not of the disk
        raise DownloadError(f"{shown}: cut off ({error or type(error).__name__}); run it again") from None
