"""What every answer carries, who may read it from a browser, and clients that are slow, gone or too patient."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from lipsformer.images.samples import SAMPLES
from tests.support.server import serving
from tests.support.trained import Trained

PHOTO = (SAMPLES / "Kaiser.jpg").read_bytes()
KIND = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def hasty(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that waits a second for a body and two for an answer, open to one other origin."""
    log = tmp_path_factory.mktemp("hasty") / "log"
    options = {
        "LIPSFORMER_READ_TIMEOUT": "1",
        "LIPSFORMER_DEADLINE": "2",
        "LIPSFORMER_THREADS": "1",
        "LIPSFORMER_CORS_ORIGINS": "https://pages.example",
        "LIPSFORMER_LOG": "json",
    }
    with serving(trained.bundle, log, **options) as (url, _):
        yield url, log


def test_every_answer_has_an_id_and_is_what_it_says(server: str) -> None:
    with httpx.Client(base_url=server) as client:
        for response in (
            client.get("/"),
            client.get("/info"),
            client.get("/none"),
            client.get("/classify"),
            client.post("/classify", content=PHOTO, headers=KIND),
            client.post("/classify", content=b"x", headers=KIND),
        ):
            assert len(response.headers["x-request-id"]) == 16
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "server" not in response.headers
        mine = client.get("/info", headers={"X-Request-ID": "mine-1.a_B"})
        assert mine.headers["x-request-id"] == "mine-1.a_B"
        for bad in ("a b", "x" * 65, "a\tb", "<script>", ""):
            assert client.get("/info", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


def test_other_origins_may_ask_only_if_they_are_named(server: str, hasty: tuple[str, Path]) -> None:
    origin = {"Origin": "https://pages.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    closed = httpx.post(f"{server}/classify", content=PHOTO, headers=KIND | origin)
    assert closed.status_code == 200
    assert not [name for name in closed.headers if name.startswith("access-control")]
    assert httpx.options(f"{server}/classify", headers=preflight).status_code == 405

    url, _ = hasty
    opened = httpx.post(f"{url}/classify", content=PHOTO, headers=KIND | origin)
    assert opened.headers["access-control-allow-origin"] == "https://pages.example"
    assert httpx.options(f"{url}/classify", headers=preflight).status_code == 200
    stranger = httpx.options(f"{url}/classify", headers=preflight | {"Origin": "https://other.example"})
    assert stranger.status_code == 400
    assert "access-control-allow-origin" not in stranger.headers


def test_slow_bodies_end_and_keep_nobody_out(hasty: tuple[str, Path]) -> None:
    url, _ = hasty

    async def trickle() -> bytes:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(b"x")
                await asyncio.sleep(0.05)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return answer

    async def main() -> None:
        slow = [asyncio.create_task(trickle()) for _ in range(100)]  # more than there are places
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{url}/classify", content=PHOTO, headers=KIND)
            assert answer.status_code == 200
        for answered in await asyncio.gather(*slow):
            assert answered.startswith(b"HTTP/1.1 408")
            assert json.loads(answered.partition(b"\r\n\r\n")[2])["reason"] == "slow_upload"

    asyncio.run(main())


def test_an_answer_that_would_come_too_late_is_given_up(hasty: tuple[str, Path]) -> None:
    url, _ = hasty
    slow = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(slow, "PNG")

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=60)) as client:
            request = {"content": slow.getvalue(), "headers": {"Content-Type": "image/png"}}
            return await asyncio.gather(*[client.post(f"{url}/classify", **request) for _ in range(40)])

    answers = asyncio.run(main())
    found = {answer.status_code for answer in answers}
    assert 504 in found
    assert found <= {200, 408, 503, 504}
    late = next(answer for answer in answers if answer.status_code == 504)
    assert late.json()["reason"] == "deadline_exceeded"
    assert httpx.post(f"{url}/classify", content=PHOTO, headers=KIND, timeout=30).status_code == 200


def test_a_client_that_leaves_is_told_apart(hasty: tuple[str, Path]) -> None:
    url, log = hasty
    head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nX-Request-ID: leaver\r\nContent-Length: "
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        connection.sendall(f"{head}{len(PHOTO)}\r\n\r\n".encode() + PHOTO[:100])
    deadline = time.monotonic() + 10
    while not (left := [line for line in log.read_text().splitlines() if "leaver" in line]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert json.loads(left[0])["status"] == 499
    assert httpx.post(f"{url}/classify", content=PHOTO, headers=KIND).status_code == 200
