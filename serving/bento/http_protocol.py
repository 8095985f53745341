"""Connection limits: uvicorn itself waits forever for a request, and keeps headers of any number and size.

`use_limited_http_protocol` replaces uvicorn's class by this one. BentoML starts uvicorn and leaves no other way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitedHttpProtocol", "use_limited_http_protocol"]

HEAD_SECONDS = 10  # for a request line and its headers to arrive; also for the rest of a body after an early response
MAX_HEAD = 32 * 1024  # bytes of them
MAX_UNFINISHED = 16 * MAX_HEAD  # bytes received before a head is complete: a header is reported only at its end
MAX_CONNECTIONS = 4096  # per worker
KEEP_ALIVE_SECONDS = 75  # longer than the 60 of proxies, which would otherwise use connections that are just closing

LAST_CALL_SECONDS = 0.3  # for requests in transit on an idle connection when the server ends

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\ncontent-length: 28\r\n"
    b"connection: close\r\n\r\nThe headers are over 32 KiB."
)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. It limits the number of connections, and the time and size of a request's head."""

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
        """Starts the timer of the first request; refuses connections over the limit."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts the bytes that arrive while a head is incomplete."""
        super().data_received(data)
        if self._in_head:
            self._unfinished += len(data)
            if self._unfinished > MAX_UNFINISHED:
                self._refuse()

    def on_message_begin(self) -> None:
        """Starts the timer of a later request on the same connection."""
        super().on_message_begin()
        self._head_bytes = self._unfinished = 0
        self._in_message = self._in_head = True
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Counts the request line."""
        if self._fits(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a header."""
        if self._fits(len(name) + len(value) + len(b": \r\n")):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stops the timer: from here on the application's limits apply."""
        self._in_head = False
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_headers_complete()
            self.cycle.keep_alive = self.cycle.keep_alive and not self._ending

    def on_body(self, body: bytes) -> None:
        """Passes on the body, unless its request was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Passes on the end, unless the request was refused."""
        self._in_message = False
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Starts the timer of a body that is still arriving: closing at once could lose the response."""
        super().on_response_complete()
        if self._in_message:
            self._start_timer()

    def shutdown(self) -> None:
        """Ends the connection after its response; an idle one a little later, to answer requests in transit."""
        self._ending = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_CALL_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
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

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def use_limited_http_protocol() -> None:
    """Makes every uvicorn server in this process use `LimitedHttpProtocol`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedHttpProtocol.__name__}"
