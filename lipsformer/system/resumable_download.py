"""Downloads of large files that resume where they broke off, also in a later run (RFC 9110, section 14)."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from .atomic import write_errors
from .console import track
from .download import DownloadError, open_url, read_chunk

__all__ = ["download_resumable"]

ATTEMPTS = 5
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before each later one
MIB = 2**20


class _InterruptedError(DownloadError):
    """The connection broke; what arrived is kept."""


def download_resumable(url: str, target: Path, *, limit: int) -> None:
    """Downloads an http(s) URL of at most `limit` bytes to `target`, which appears only once it is complete.

    What has arrived is kept next to `target`, in a file that ends in `.part`. A later call requests the rest, and
    starts over if the server's file has changed meanwhile or the server does not resume. Only one process may download
    to a target at a time. No message shows the query string.

    Raises:
        DownloadError: if the server cannot be reached, refuses, sends too much, or breaks off several times.
        InputError: if `target` cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _request_rest(url, part, limit)
            except _InterruptedError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
            else:
                break
        part.replace(target)
        _validator(part).unlink(missing_ok=True)


def _request_rest(url: str, part: Path, limit: int) -> None:
    """One request for what `part` lacks, appended to it."""
    shown = url.partition("?")[0]
    have, validator = _state(part)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = open_url(url, headers)
    except DownloadError as error:
        if error.status == 416:  # nothing follows what is here
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            _discard(part)
            raise _InterruptedError(f"{shown}: the server has a shorter file than before; run it again") from None
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{shown}: the server sends a web page; is a login or a proxy in the way?")
        start, total = _range(response, have, shown)
        if start and _validator_of(response) not in ("", validator):
            _discard(part)
            raise _InterruptedError(f"{shown}: the server's file changes while it is downloaded; run it again")
        if total is not None and total > limit:
            raise DownloadError(f"{shown}: {total:,} bytes, more than the {limit:,} that it may have; is it that file?")
        if not start:
            _discard(part)
            _validator(part).write_text(_validator_of(response), encoding="utf-8")
        _append(response, part, shown, start=start, total=total, limit=limit)


def _append(response: Any, part: Path, shown: str, *, start: int, total: int | None, limit: int) -> None:
    received = start
    with part.open("ab") as file, track(f"downloading {shown} (MiB)", (total or limit) // MIB) as advance:
        advance(received // MIB, "")
        try:
            while chunk := read_chunk(response, shown):
                file.write(chunk)
                advance((received + len(chunk)) // MIB - received // MIB, "")
                received += len(chunk)
                if received > limit:
                    break
        except DownloadError as error:
            raise _InterruptedError(str(error)) from None
    if received > limit:
        _discard(part)
        raise DownloadError(f"{shown}: more than the {limit:,} bytes that it may have; is it that file?")
    if total is not None and received != total:
        raise _InterruptedError(f"{shown}: cut off after {received:,} of {total:,} bytes; run it again to resume")


def _range(response: Any, have: int, shown: str) -> tuple[int, int | None]:
    """The position of the response's first byte in the file, and the size of the file if the server says it."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return 0, int(length) if length is not None and length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if match is None or int(match[1]) != have:
        raise DownloadError(f"{shown}: the server sends another part of the file than requested; download it by hand")
    return have, None if match[2] == "*" else int(match[2])


def _validator(part: Path) -> Path:
    """The file that holds what identifies the server's version of the file that `part` is the start of."""
    return part.with_name(f"{part.name}.version")


def _validator_of(response: Any) -> str:
    """The value for If-Range: a strong ETag, else the date; empty if the server gives neither."""
    etag = response.headers.get("ETag") or ""
    return str(etag if etag.startswith('"') else response.headers.get("Last-Modified") or "")


def _state(part: Path) -> tuple[int, str]:
    """The number of bytes that can be kept, and the validator of the file that they belong to."""
    if not part.is_file() or not _validator(part).is_file():
        return 0, ""
    validator = _validator(part).read_text(encoding="utf-8")
    return (part.stat().st_size, validator) if validator else (0, "")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
