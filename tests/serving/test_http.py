"""Response headers, other origins, and clients that are slow, gone or waiting for too long."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from lipsformer.images.samples import SAMPLES
from tests.support.http.server import App, app_running
from tests.support.trained import Trained

PHOTO = (SAMPLES / "Kaiser.jpg").read_bytes()
KIND = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def hasty(trained: Trained) -> Iterator[App]:
    """An application that waits a second for a body and two for an answer, open to one other origin."""
    origins = "https://pages.example"
    with app_running(trained.bundle, READ_TIMEOUT="1", DEADLINE="2", THREADS="1", CORS_ORIGINS=origins) as app:
        yield app


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


def test_other_origins_may_ask_only_if_they_are_named(server: str, hasty: App) -> None:
    origin = {"Origin": "https://pages.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    closed = httpx.post(f"{server}/classify", content=PHOTO, headers=KIND | origin)
    assert closed.status_code == 200
    assert not [name for name in closed.headers if name.startswith("access-control")]
    assert httpx.options(f"{server}/classify", headers=preflight).status_code == 405

    url = hasty.url
    opened = httpx.post(f"{url}/classify", content=PHOTO, headers=KIND | origin)
    assert opened.headers["access-control-allow-origin"] == "https://pages.example"
    assert httpx.options(f"{url}/classify", headers=preflight).status_code == 200
    other = httpx.options(f"{url}/classify", headers=preflight | {"Origin": "https://other.example"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_slow_bodies_end_and_keep_nobody_out(hasty: App) -> None:
    url = hasty.url

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
        slow = [asyncio.create_task(trickle()) for _ in range(100)]  # more than there are slots
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{url}/classify", content=PHOTO, headers=KIND)
            assert answer.status_code == 200
        for answered in await asyncio.gather(*slow):
            assert answered.startswith(b"HTTP/1.1 408")
            problem = json.loads(answered.partition(b"\r\n\r\n")[2])
            assert problem["reason"] == "slow_upload"
            assert " of 9999 bytes arrived within 1 seconds" in problem["detail"]

    asyncio.run(main())


def test_an_answer_that_would_come_too_late_is_given_up(hasty: App) -> None:
    url = hasty.url
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


def test_a_client_that_leaves_is_recorded_as_such(hasty: App) -> None:
    url = hasty.url
    head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nX-Request-ID: leaver\r\nContent-Length: "
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        connection.sendall(f"{head}{len(PHOTO)}\r\n\r\n".encode() + PHOTO[:100])
    deadline = time.monotonic() + 10
    while not (left := [record for record in hasty.records if record.request_id == "leaver"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left[0].status == 499
    assert httpx.post(f"{url}/classify", content=PHOTO, headers=KIND).status_code == 200
