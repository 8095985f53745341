"""HTTP on bare sockets: fast, and able to send what no HTTP library would."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

__all__ = ["Connection", "Reply", "post"]

Reply = tuple[int, Mapping[str, str], bytes]  # status, headers by lower-case name, body

SECONDS = 20.0  # nothing that is asked here may take that long


class Connection:
    """A connection, kept for several requests; a context that closes it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends; whether the other side still listens shows when it is read from."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def reply(self) -> Reply | None:
        """The next answer; None if the connection ends instead.

        Raises:
            TimeoutError: if nothing comes.
        """
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if status == 100:
            return self.reply()
        if "content-length" in headers:
            return status, headers, self._exactly(int(headers["content-length"]))
        return status, headers, self._exactly(2**40)  # until the other side closes

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._rest:
            if not (more := self._receive()):
                return None
            self._rest += more
        head, _, self._rest = self._rest.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size and (more := self._receive()):
            self._rest += more
        body, self._rest = self._rest[:size], self._rest[size:]
        return body

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""


def post(path: str, content_type: str, body: bytes) -> bytes:
    """The bytes of a request that is right as HTTP, whatever its body is."""
    head = f"POST {path} HTTP/1.1\r\nHost: fuzz\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body
