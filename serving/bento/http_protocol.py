"""What a connection may do before it has made a request: uvicorn itself waits for ever, and keeps every header.

`use_limited_http_protocol` has uvicorn use this class in place of its own: BentoML starts it and leaves no other way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitedHttpProtocol", "use_limited_http_protocol"]

HEAD_SECONDS = 10  # for a request line and its headers to arrive; and for the rest of a body that was answered before
MAX_HEAD = 32 * 1024  # bytes of them
MAX_UNFINISHED = 16 * MAX_HEAD  # bytes received before a head is complete: one header is told when it has ended
MAX_CONNECTIONS = 4096  # of one worker
KEEP_ALIVE_SECONDS = 75  # longer than the 60 that proxies keep theirs, who else meet connections that just close

LAST_CALL_SECONDS = 0.3  # for what is on its way when the server ends, on a connection that rests

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: 28\r\n"
    b"connection: close\r\n\r\nThe headers are over 32 KiB."
)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, with limits on its number, on the time and on the size of a request's head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = KEEP_ALIVE_SECONDS
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._unfinished = 0
        self._in_message = False
        self._in_head = False
        self._ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Starts the clock of the first request; refuses a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what arrives while a head is incomplete."""
        super().data_received(data)
        if self._in_head:
            self._unfinished += len(data)
            if self._unfinished > MAX_UNFINISHED:
                self._refuse()

    def on_message_begin(self) -> None:
        """Starts the clock of a later request on the same connection."""
        super().on_message_begin()
        self._head_bytes = self._unfinished = 0
        self._in_message = self._in_head = True
        self._start_clock()

    def on_url(self, url: bytes) -> None:
        """Counts the request line."""
        if self._fits(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a header."""
        if self._fits(len(name) + len(value) + len(b": \r\n")):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stops the clock: from here on the application has its own limits."""
        self._in_head = False
        self._stop_clock()
        if not self.transport.is_closing():
            super().on_headers_complete()
            self.cycle.keep_alive = self.cycle.keep_alive and not self._ending

    def on_body(self, body: bytes) -> None:
        """Passes a body on, unless its request was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Passes the end on, unless the request was refused."""
        self._in_message = False
        self._stop_clock()
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Starts the clock of a body that goes on after its answer: closing at once would take the answer with it."""
        super().on_response_complete()
        if self._in_message:
            self._start_clock()

    def shutdown(self) -> None:
        """Ends the connection after its answer, and one that rests soon: what is on its way to it is answered yet."""
        self._ending = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_CALL_SECONDS, self._close_if_resting)
        else:
            super().shutdown()

    def _close_if_resting(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()

    def _fits(self, size: int) -> bool:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._refuse()
        return self._head_bytes <= MAX_HEAD

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def _start_clock(self) -> None:
        self._stop_clock()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def use_limited_http_protocol() -> None:
    """Has every uvicorn of this process use `LimitedHttpProtocol`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedHttpProtocol.__name__}"
