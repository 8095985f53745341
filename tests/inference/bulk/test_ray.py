"""The rows of a Ray cluster of two nodes are those of one machine, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import BulkOptions, ray_workers
from lipsformer.inference.bulk.pipeline import IN_FLIGHT
from lipsformer.inference.bulk.ray_workers import RESTARTS, RayWorkers, WorkerOptions
from tests.support.bulk import bulk, forbid_repetition
from tests.support.command import Run
from tests.support.http.running import running
from tests.support.trained import Trained

CLUSTER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "300",  # a lost node is found after five checks
    "RAY_health_check_initial_delay_ms": "1000",
}
MEMORY = 100_000_000  # bytes of a node's object store


@pytest.fixture
def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[3]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, **CLUSTER, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture
def nodes(environment: dict[str, str]) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a cluster, and the processes of its head and of another node, with one CPU each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray")  # its sockets need a short path
    where = (["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"],)
    where += ([f"--address=127.0.0.1:{port}"],)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        started: list[subprocess.Popen[bytes]] = []
        for options in where:  # at once: the second waits for the head
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
            command += ["--num-cpus=1", f"--object-store-memory={MEMORY}", "--disable-usage-stats", "--block"]
            log = stack.enter_context(Path(folder, f"node{len(started)}.log").open("wb"))
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(kill, node)
            started.append(node)
        for number, node in enumerate(started):
            path = Path(folder, f"node{number}.log")
            await_(lambda path=path: b"Ray runtime started" in path.read_bytes(), path, node)
        yield f"127.0.0.1:{port}", started


def kill(node: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it started, also in other sessions."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(30)


def await_(done: Callable[[], bool], log: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until something happens, while the process runs."""
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


class ImageServer(http.server.ThreadingHTTPServer):
    """Serves images by number, /0 and so on.

    Attributes:
        images: their contents.
        held_from: the first number that is answered only after `released` is set.
        waiting: the requests that wait for it.
    """

    def __init__(self, images: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.images, self.held_from = images, len(images)
        self.hold(len(images))

    def hold(self, held_from: int) -> None:
        self.held_from, self.released, self.waiting = held_from, threading.Event(), list[int]()


class Handler(http.server.BaseHTTPRequestHandler):
    server: ImageServer

    def do_GET(self) -> None:
        server, number = self.server, int(self.path.removeprefix("/"))
        if number >= server.held_from:
            server.waiting.append(number)
            server.released.wait(240)
        with contextlib.suppress(ConnectionError):  # the worker was killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.images[number])))
            self.end_headers()
            self.wfile.write(server.images[number])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.slow
def test_a_lost_driver_and_a_lost_node_change_nothing(
    trained: Trained, tmp_path: Path, nodes: tuple[str, list[subprocess.Popen[bytes]]], environment: dict[str, str]
) -> None:
    address, (_, other) = nodes
    photos = [photo.read_bytes() for photo in sorted(SAMPLES.glob("*.jpg"))]
    predictor = load_predictor(trained.bundle, threads=1)
    first = 2 * IN_FLIGHT * predictor.max_batch  # a later image is asked for when a block is saved
    server = ImageServer([photos[number % 14] if number % 15 else b"no image" for number in range(2 * first)])
    output, log = tmp_path / "rows.jsonl", tmp_path / "log"
    with running(server) as url:
        names = [f"{url}/{number}" for number in range(2 * first)]
        expected = bulk(predictor, tmp_path / "local.jsonl", *names)
        command = [sys.executable, "-m", "lipsformer", "predict", trained.bundle, *names, "--output", output]
        command += ["--engine", "ray", "--address", address]
        saved = []
        for lost in ("driver", "node"):
            server.hold(first)
            with log.open("wb") as file:
                driver = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
                try:
                    await_(lambda: len(server.waiting) == 4, log, driver)  # both workers read two images at a time
                    kill(driver if lost == "driver" else other)
                    saved.append(forbid_repetition(output.with_name("rows.jsonl.partial")) if lost == "driver" else 0)
                    assert not output.exists()
                    server.released.set()
                    assert lost == "driver" or driver.wait(240) == 0, log.read_text()
                finally:
                    server.released.set()
                    kill(driver)
    assert saved[0] >= predictor.max_batch
    assert output.read_bytes() == expected
    assert b"its worker is gone" in log.read_bytes()


def test_a_worker_is_started_again_a_few_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class RayError(Exception):
        pass

    class Actor:
        def __init__(self) -> None:
            self.start = self.compute = SimpleNamespace(remote=self.fail)

        async def fail(self, *_: object) -> None:
            raise RayError

    errors = SimpleNamespace(RayError=RayError, RayTaskError=type("RayTaskError", (RayError,), {}))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors))
    started: list[Actor] = []

    def start() -> Actor:
        started.append(Actor())
        return started[-1]

    async def compute() -> None:
        workers = RayWorkers(BulkOptions(model="m", sources=()), WorkerOptions(), {}, None)
        workers.nodes = [ray_workers._Node(name="10.0.0.1", start=start, actor=start())]
        found = await asyncio.gather(*(workers.compute([]) for _ in range(3)), return_exceptions=True)
        assert [str(one) for one in found] == ["no worker is left; run the same command again to resume"] * 3

    asyncio.run(compute())
    assert len(started) == 1 + RESTARTS


def test_without_ray_or_a_cluster_it_says_so(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(SAMPLES.glob("*.jpg"))
    words = ("predict", trained.bundle, photo, "--output", tmp_path / "rows.jsonl")
    status, _, err = run(*words, "--address", "127.0.0.1:1")
    assert status == 2
    assert "--address: only with --engine ray" in err
    status, _, err = run("predict", trained.bundle, photo, "--engine", "ray")
    assert status == 2
    assert "--engine: only with --output OUT" in err
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = run(*words, "--engine", "ray")
    assert status == 2
    assert "Ray is not installed; pip install 'lipsformer[ray]'" in err
