"""Downloading files over HTTP, whole or not at all."""

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
PIECE = 2**20


class DownloadError(InputError):
    """A file that cannot be had; `status` is the server's answer, if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def download(url: str, target: Path, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Writes what an http(s) URL gives to `target`, once all of it has come. What follows a "?" is never shown.

    Args:
        url: where from.
        target: the file to write.
        stopped: asked now and then; once it is true, the download is given up.

    Raises:
        DownloadError: if the server cannot be reached, refuses, or breaks off.
        InputError: if `target` cannot be written.
    """
    shown = url.partition("?")[0]
    if not shown.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{shown}: not an http or https address; give one")
    request = urllib.request.Request(url, headers={"User-Agent": "lipsformer"})  # noqa: S310 - checked above
    try:
        answer = urllib.request.urlopen(request, timeout=STALL_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{shown}: the server answers {error.code} {error.reason}; check it", error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DownloadError(f"{shown}: cannot be reached ({reason}); check the address and the network") from None
    with answer, atomic_write(target) as draft:
        promised = answer.headers.get("Content-Length")
        received = 0
        with draft.open("wb") as file:
            while piece := _piece(answer, shown):
                file.write(piece)
                received += len(piece)
                if stopped():
                    raise DownloadError(f"{shown}: given up after {received} bytes; run it again")
        if promised is not None and received != int(promised):
            raise DownloadError(f"{shown}: cut off after {received} of {promised} bytes; run it again")


def _piece(answer: http.client.HTTPResponse, shown: str) -> bytes:
    try:
        return answer.read(PIECE)
    except (OSError, http.client.HTTPException) as error:  # an OSError here is the network's, not the disk's
        raise DownloadError(f"{shown}: cut off ({error or type(error).__name__}); run it again") from None
