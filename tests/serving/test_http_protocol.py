"""Connections that are slow, endless or too many, against a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from lipsformer.serving.bento import http_protocol as connections
from lipsformer.serving.bento.http_protocol import LimitedHttpProtocol, use_limited_http_protocol

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"

Ask = Callable[..., Awaitable[bytes]]


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/refused":
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, int]]:
    config = uvicorn.Config(echo, log_config=None, lifespan="off", http=LimitedHttpProtocol)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        await serving


async def ask(address: tuple[str, int], *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server says to these pieces, until it closes or has been silent for two seconds."""
    reader, writer = await asyncio.open_connection(*address)
    said = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        while chunk := await asyncio.wait_for(reader.read(65536), 2):
            said += chunk
            if said.endswith(b"done"):
                break
        else:
            said += b"<closed>"
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return said


def run(scenario: Callable[[tuple[str, int]], Awaitable[None]]) -> None:
    async def main() -> None:
        async with listening() as address:
            await asyncio.wait_for(scenario(address), 20)

    asyncio.run(main())


def test_an_ordinary_request_is_answered_and_the_connection_is_kept() -> None:
    async def scenario(address: tuple[str, int]) -> None:
        said = await ask(address, HEAD + b"\r\nabcd", HEAD + b"\r\n", b"done", pause=0.02)
        assert said.count(b"200 OK") == 2
        assert said.endswith(b"done")

    run(scenario)


def test_a_head_that_does_not_arrive_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)

    async def scenario(address: tuple[str, int]) -> None:
        assert await ask(address) == b"<closed>"  # not a word
        trickle = [HEAD[index : index + 1] for index in range(len(HEAD))]
        assert await ask(address, *trickle, pause=0.02) in (b"<closed>", b"")
        second = await ask(address, HEAD + b"\r\nabcd" + HEAD, pause=0.5)  # the second request stays incomplete
        assert second.count(b"200 OK") == 1
        assert second.endswith(b"<closed>")
        refused = HEAD.replace(b"POST /", b"POST /refused") + b"\r\n"
        after = await ask(address, refused, b"a", b"b", pause=0.02)  # answered at once; then its body gets some time
        assert b"413" in after
        assert after.endswith(b"<closed>")
        whole = await ask(address, refused, b"abcd", HEAD + b"\r\ndone", pause=0.05)
        assert whole.endswith(b"done")
        late = await ask(address, HEAD + b"\r\n", b"do", b"ne", pause=0.3)  # a slow body is the application's affair
        assert late.endswith(b"done")

    run(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000,
        b"POST / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n",
        b"POST /" + b"y" * 40_000 + b" HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nx: " + b"y" * 2_000_000,  # never ends
    ],
)
def test_a_head_that_is_too_large_is_refused(head: bytes) -> None:
    async def scenario(address: tuple[str, int]) -> None:
        said = await ask(address, head, b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 431") or said == b""  # reset while we still sent
        assert b"200 OK" not in said
        assert (await ask(address, HEAD + b"\r\ndone")).endswith(b"done")

    run(scenario)


def test_only_so_many_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)

    async def scenario(address: tuple[str, int]) -> None:
        idle = [await asyncio.open_connection(*address) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert b"200" not in await ask(address, HEAD + b"\r\ndone")
        idle[0][1].close()
        await asyncio.sleep(0.05)
        assert b"200" in await ask(address, HEAD + b"\r\ndone")
        for _, writer in idle:
            writer.close()

    run(scenario)


def test_a_request_in_transit_when_the_server_ends_is_answered() -> None:
    async def main() -> None:
        async with listening() as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD + b"\r\nabcd")
            assert (await reader.readuntil(b"abcd")).startswith(b"HTTP/1.1 200")
            ending = asyncio.create_task(asyncio.sleep(0.15))
            ending.add_done_callback(lambda _: writer.write(HEAD + b"\r\nlast"))
            last = asyncio.create_task(reader.read())
        said = await asyncio.wait_for(last, 5)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in said
        assert said.endswith(b"last")
        writer.close()

    asyncio.run(main())


def test_uvicorn_takes_them_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    use_limited_http_protocol()
    config = uvicorn.Config(echo, log_config=None)
    config.load()
    assert config.http_protocol_class is LimitedHttpProtocol
