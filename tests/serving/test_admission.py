"""Admission control, and the limits of request bodies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from lipsformer.serving.http.problems import Problem
from lipsformer.serving.http.request_body import BodyReader, while_connected
from lipsformer.serving.observability import open_metrics
from lipsformer.serving.pipeline import admission as admission_module
from lipsformer.serving.pipeline.admission import Admission, Overloaded


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_only_so_many_images_are_admitted_at_once() -> None:
    admission = Admission(max_pending=8, deadline=30, metrics=open_metrics())
    with contextlib.ExitStack() as places:
        for _ in range(8):
            places.enter_context(admission.enter())
        with pytest.raises(Overloaded, match="8 images are pending already"):
            admission.enter()
        with pytest.raises(Overloaded):
            admission.check()
    with admission.enter():
        assert admission.pending == 1
    assert admission.pending == 0


def test_a_request_that_would_miss_its_deadline_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(admission_module, "time", clock)
    admission = Admission(max_pending=100, deadline=10, metrics=open_metrics())
    clock.now += 60  # of rest, which say nothing about the pace
    places = [admission.enter() for _ in range(90)]
    for place in places[:1]:
        clock.now += 3.0
        place.__exit__(None, None, None)
    assert admission.expected_wait == pytest.approx(89 * 0.15)  # one slow image means little
    for place in places[1:]:
        clock.now += 3.0  # three seconds an image
        place.__exit__(None, None, None)
    held = [admission.enter() for _ in range(4)]  # the fifth would be answered after 12 seconds
    with pytest.raises(Overloaded, match="an answer would take 12 seconds now") as refusal:
        admission.enter()
    assert refusal.value.retry_after == 10
    for place in held:
        clock.now += 0.1
        place.__exit__(None, None, None)
    with admission.enter():  # nobody waits: the pace does not matter
        pass


def test_refusals_do_not_count_as_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(admission_module, "time", clock)
    admission = Admission(max_pending=10, deadline=10, metrics=open_metrics())
    place = admission.enter()
    clock.now += 5
    place.__exit__(ValueError, ValueError(), None)
    admission.enter()
    assert admission.expected_wait == 0


def request(*chunks: bytes, pause: float = 0.0, **headers: str) -> Request:
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return Request(
        {
            "type": "http",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        },
        receive,
    )


def bodies(**changes: Any) -> BodyReader:
    return BodyReader(**{"max_bytes": 1000, "max_reading": 2, "timeout": 5, "metrics": open_metrics(), **changes})


async def receive(bodies: BodyReader, request: Request, limit: int = 100) -> bytes:
    async with bodies.receive(request, limit) as body:
        assert bodies.held == len(body)
        return bytes(body)


def test_a_body_is_whole_and_bounded() -> None:
    held = bodies()
    assert asyncio.run(receive(held, request(b"ab", b"", b"cd"))) == b"abcd"
    for over in (request(b"x" * 101), request(b"x" * 90, b"x" * 90), request(b"x" * 90, b"x" * 200, b"never")):
        with pytest.raises(Problem, match="bytes, limit 100;") as refusal:
            asyncio.run(receive(held, over))
        assert refusal.value.status == 413
    with pytest.raises(Problem, match="bytes, limit 100;"):
        asyncio.run(receive(held, request(b"", content_length="9" * 30)))
    assert held.held == 0


def test_a_slow_body_is_given_up() -> None:
    with pytest.raises(Problem, match=r"^[12] of an unknown number of bytes arrived within 0\.05 seconds") as refusal:
        asyncio.run(receive(bodies(timeout=0.05), request(b"a", b"b", b"c", pause=0.03)))
    assert refusal.value.reason == "slow_upload"


def test_all_bodies_together_are_bounded() -> None:
    async def main() -> None:
        held = bodies(max_bytes=150)
        async with held.receive(request(b"x" * 100), 100):
            with pytest.raises(Overloaded, match="100 bytes are held already"):
                await receive(held, request(b"x" * 51))
            assert await receive_meanwhile(held, b"x" * 50) == 50
        assert held.held == 0
        slow = [asyncio.create_task(receive(held, request(b"x", pause=1))) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="2 requests are being read already"):
            await receive(held, request(b"x"))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (held.held, held.reading) == (0, 0)

    async def receive_meanwhile(held: BodyReader, body: bytes) -> int:
        async with held.receive(request(body), 100) as view:
            return len(view)

    asyncio.run(main())


def test_work_for_a_client_that_left_is_cancelled() -> None:
    class Left:
        async def receive(self) -> dict[str, str]:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

    async def main() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(ClientDisconnect):
            await while_connected(Left(), work())  # type: ignore[arg-type]
        await asyncio.wait_for(cancelled.wait(), 5)

    asyncio.run(main())
