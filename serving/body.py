"""Reading a request: never more than a limit, and never longer than its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .problems import Problem

__all__ = ["read_body", "while_connected"]

Result = TypeVar("Result")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it held in memory, whatever its content-length says.

    A body that is somewhat too long is read to its end before it is refused: a client that still sends when the
    connection closes may never see the answer.

    Raises:
        Problem: 413 if it is longer.
    """
    refusal = Problem(413, "too_many_bytes", f"the body is over {limit} bytes; scale the image down")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > 2 * limit:
        raise refusal
    body, seen = bytearray(), 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > 2 * limit:
            break
        if seen <= limit:
            body += chunk
    if seen > limit:
        raise refusal
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away. The body must have been read.

    Raises:
        ClientDisconnect: if the client went away first.
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
