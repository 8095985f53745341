"""The parts of the service that a request from outside cannot corner: batching, settings, launch checks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from starlette.requests import ClientDisconnect
from trained import Trained

from lipsformer.errors import GateError, InputError
from lipsformer.samples import SAMPLES
from lipsformer.serving import serve
from lipsformer.serving.app import create_app
from lipsformer.serving.batching import BatchQueue, Overloaded
from lipsformer.serving.body import while_connected
from lipsformer.serving.engine import load_engine
from lipsformer.serving.forms import parse_form
from lipsformer.serving.problems import Problem
from lipsformer.serving.settings import Settings


class Runtime:
    """Answers each image's first pixel; notes its batches; waits for `gate`; fails if an image starts with 255."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        self.gate.wait(10)
        self.batches.append(len(pixels))
        if (pixels[:, 0, 0, 0] == 255).any():
            raise RuntimeError("poisoned")
        return pixels[:, 0, 0, :1].astype(np.float32)


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, dtype=np.uint8)


def run(scenario: Callable[[Runtime, BatchQueue], Coroutine[Any, Any, None]]) -> Runtime:
    runtime = Runtime()

    async def main() -> None:
        queue = BatchQueue(runtime.infer, max_batch=4, max_pending=8)
        queue.start()
        await asyncio.wait_for(scenario(runtime, queue), 20)
        await queue.close()
        with pytest.raises(Overloaded):
            await queue.infer(image(1))

    asyncio.run(main())
    return runtime


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def scenario(_: Runtime, queue: BatchQueue) -> None:
        assert (await queue.infer(image(7))).logits[0] == 7

    assert run(scenario).batches == [1]


def test_requests_gather_while_the_runtime_is_busy_and_get_their_own_answers() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        tasks = [asyncio.create_task(queue.infer(image(value))) for value in range(10)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        assert [answer.logits[0] for answer in await asyncio.gather(*tasks)] == list(range(10))

    assert run(scenario).batches == [4, 4, 2]


def test_a_poisoned_request_fails_alone() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        tasks = [asyncio.create_task(queue.infer(image(value))) for value in (1, 255, 3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], RuntimeError)
        assert results[0].logits[0] == 1
        assert results[2].logits[0] == 3
        assert (await queue.infer(image(9))).logits[0] == 9

    assert run(scenario).batches == [3, 1, 1, 1, 1]


def test_a_request_that_nobody_waits_for_costs_nothing() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        first = asyncio.create_task(queue.infer(image(1)))
        await asyncio.sleep(0.05)  # it runs; the next two wait
        second, third = (asyncio.create_task(queue.infer(image(value))) for value in (2, 3))
        await asyncio.sleep(0)
        second.cancel()
        runtime.gate.set()
        assert (await first).logits[0] == 1
        assert (await third).logits[0] == 3

    assert run(scenario).batches == [1, 1]


def test_only_so_many_are_admitted_at_once() -> None:
    async def scenario(_: Runtime, queue: BatchQueue) -> None:
        with contextlib.ExitStack() as places:
            for _ in range(8):
                places.enter_context(queue.admit())
            with pytest.raises(Overloaded, match="8 images are pending already"):
                places.enter_context(queue.admit())
        with queue.admit():
            assert queue.pending == 1

    run(scenario)


def test_what_is_being_computed_when_the_server_stops_is_answered() -> None:
    async def scenario(runtime: Runtime, queue: BatchQueue) -> None:
        runtime.gate.clear()
        running = asyncio.create_task(queue.infer(image(1)))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(queue.infer(image(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        runtime.gate.set()
        assert (await running).logits[0] == 1
        with pytest.raises(Overloaded):
            await waiting
        await closing

    run(scenario)


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


def test_a_late_answer_is_given_up(trained: Trained) -> None:
    """The deadline, with the real application in front of a runtime that hangs."""

    async def main() -> None:
        environment = {"LIPSFORMER_BUNDLE": str(trained.bundle), "LIPSFORMER_DEADLINE": "1"}
        engine = load_engine(Settings.from_environment(environment))
        gate = threading.Event()
        engine.queue.infer_batch = lambda pixels: (gate.wait(20), np.zeros((len(pixels), 14), np.float32))[1]
        engine.queue.start()
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            photo = (SAMPLES / "Kaiser.jpg").read_bytes()
            response = await client.post("/classify", content=photo, headers={"Content-Type": "image/jpeg"})
            assert response.status_code == 504
            assert response.json()["reason"] == "deadline_exceeded"
            assert engine.queue.pending == 0
            gate.set()
        await engine.close()

    asyncio.run(main())


def test_warm_up_runs_the_smallest_and_the_largest_batch_and_checks_the_answer(trained: Trained) -> None:
    class Recorder:
        provider = "recorder"
        batches: ClassVar[list[int]] = []

        def infer(self, pixels: np.ndarray) -> np.ndarray:
            self.batches.append(len(pixels))
            return np.zeros((len(pixels), 14 if len(pixels) == 1 else 13), np.float32)

    engine = load_engine(Settings.from_environment({"LIPSFORMER_BUNDLE": str(trained.bundle)}))
    engine.predictor = dataclasses.replace(engine.predictor, runtime=Recorder())
    with pytest.raises(InputError, match=r"answers in shape \(16, 13\), not with 14 classes"):
        engine.warm_up()
    assert Recorder.batches == [1, 16]


def test_a_part_with_a_type_but_no_file_name_is_a_file() -> None:
    head = b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png'
    body = b"--x\r\n" + head + b"\r\n\r\nbytes\r\n--x--\r\n"
    assert parse_form(body, "multipart/form-data; boundary=x").image == b"bytes"
    with pytest.raises(Problem, match="cut off before its closing boundary"):
        parse_form(body[:-6], "multipart/form-data; boundary=x")


def test_a_bundle_that_cannot_be_served_ends_bentoml_instead_of_restarting_it(trained: Trained, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LIPSFORMER_BUNDLE": str(trained.bundle),
        "LIPSFORMER_MAX_BATCH": "64",
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "lipsformer.serving.service:Classifier", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "lipsformer: LIPSFORMER_MAX_BATCH=64: the export proved batches up to 16" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment({"LIPSFORMER_BUNDLE": "/a/b", "LIPSFORMER_MAX_BYTES": "1000"})
    assert settings.bundle == Path("/a/b")
    assert settings.limits.max_bytes == 1000


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LIPSFORMER_BUNDLE": "b", "LIPSFORMER_MAX_BYTES": "lots"}, "LIPSFORMER_MAX_BYTES=lots: a whole number"),
        ({"LIPSFORMER_BUNDLE": "b", "LIPSFORMER_MAX_PENDING": "0"}, "LIPSFORMER_MAX_PENDING=0: a whole number from 1"),
        ({"LIPSFORMER_BUNDLE": "b", "LIPSFORMER_DEVICE": "tpu"}, "--device tpu: one of auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.from_environment(environment)


def test_a_batch_beyond_the_proved_one_is_refused(trained: Trained) -> None:
    environment = {"LIPSFORMER_BUNDLE": str(trained.bundle), "LIPSFORMER_MAX_BATCH": "64"}
    with pytest.raises(InputError, match="LIPSFORMER_MAX_BATCH=64: the export proved batches up to 16"):
        load_engine(Settings.from_environment(environment))


def test_a_tampered_bundle_is_not_served(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    with (bundle / "ort-fp32.onnx").open("ab") as file:
        file.write(b" ")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was served"))
    with pytest.raises(GateError, match="SHA-256"):
        serve(bundle, host="127.0.0.1", port=port, workers=1)
