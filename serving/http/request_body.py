"""Reading a request body, with limits on size and time, and stopping work when its client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lipsformer.serving.observability import Metrics
from lipsformer.serving.pipeline.admission import Overloaded

from .problems import Problem, shown

__all__ = ["BodyReader", "while_connected"]

Result = TypeVar("Result")


class BodyReader:
    """Reads bodies, and bounds those that are in memory at once.

    Args:
        max_bytes: of all of them together.
        max_reading: number of bodies that may be arriving at once; a slow client takes up one of these and no slot.
        timeout: seconds for a body to arrive.
        metrics: counts the bodies that are arriving.
    """

    def __init__(self, *, max_bytes: int, max_reading: int, timeout: float, metrics: Metrics) -> None:
        self.max_bytes = max_bytes
        self.max_reading = max_reading
        self.timeout = timeout
        self.held = 0
        self.reading = 0
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def receive(self, request: Request, limit: int) -> AsyncIterator[memoryview]:
        """The whole body of a request, which counts as held until the context is left.

        At most `limit` bytes are kept, whatever content-length says. After a refusal the connection reads and discards
        the rest for a while: a client that is still sending when it closes may never see the response.

        Raises:
            Problem: 415 if it is compressed, 413 if it is longer, 408 if it takes too long.
            Overloaded: if too much is held already.
        """
        _check_encoding(request.headers.getlist("content-encoding"))
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_long(f"the body has {declared[:20]} bytes", limit)
        body = bytearray()
        try:
            await self._read(request, body, limit)
            yield memoryview(body)
        finally:
            self.held -= len(body)

    async def _read(self, request: Request, body: bytearray, limit: int) -> None:
        if self.reading >= self.max_reading:
            raise Overloaded(f"{self.reading} requests are being read already")
        self.reading += 1
        self._metrics.reading.inc()
        try:
            async with asyncio.timeout(self.timeout):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise _too_long(f"the body has at least {len(body) + len(chunk)} bytes", limit)
                    if self.held + len(chunk) > self.max_bytes:
                        raise Overloaded(f"{self.held} bytes are held already")
                    body += chunk
                    self.held += len(chunk)
        except TimeoutError:
            expected = request.headers.get("content-length", "")[:20] or "an unknown number of"
            detail = (
                f"{len(body)} of {expected} bytes arrived within {self.timeout:g} seconds; "
                "send the body again, or a smaller image"
            )
            raise Problem(408, "slow_upload", detail) from None
        finally:
            self.reading -= 1
            self._metrics.reading.dec()


def _check_encoding(values: Iterable[str]) -> None:
    """Checks that a body is sent as it is; `values` are those of its Content-Encoding headers (RFC 9110, 8.4)."""
    codings = [coding.strip() for value in values for coding in value.split(",")]
    if wrong := ", ".join(coding for coding in codings if coding.lower() not in ("", "identity")):
        detail = f"content encoding {shown(wrong)} is not accepted; send the body uncompressed, without that header"
        raise Problem(415, "wrong_content_encoding", detail, {"Accept-Encoding": "identity"})


def _too_long(found: str, limit: int) -> Problem:
    return Problem(413, "too_many_bytes", f"{found}, limit {limit}; scale images down, or send fewer in a request")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client disconnects. The body must have been read.

    Raises:
        ClientDisconnect: if the client disconnected first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body, only a disconnect can come
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
