"""The rows of a Ray cluster of two nodes are those of one machine, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import BulkOptions, ray_workers
from lipsformer.inference.bulk.pipeline import IN_FLIGHT
from lipsformer.inference.bulk.ray_workers import RESTARTS, RayWorkers, WorkerOptions
from tests.support.bulk import bulk, forbid_repetition
from tests.support.command import Run
from tests.support.http.running import running
from tests.support.ray_cluster import await_, environment, kill, ray_cluster
from tests.support.trained import Trained


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
def test_a_lost_driver_and_a_lost_node_change_nothing(trained: Trained, tmp_path: Path) -> None:
    photos = [photo.read_bytes() for photo in sorted(SAMPLES.glob("*.jpg"))]
    predictor = load_predictor(trained.bundle, threads=1)
    first = 2 * IN_FLIGHT * predictor.max_batch  # a later image is asked for when a block is saved
    server = ImageServer([photos[number % 14] if number % 15 else b"no image" for number in range(2 * first)])
    output, log = tmp_path / "rows.jsonl", tmp_path / "log"
    with running(server) as url, ray_cluster(1) as (address, other):
        names = [f"{url}/{number}" for number in range(2 * first)]
        expected = bulk(predictor, tmp_path / "local.jsonl", *names)
        command = [sys.executable, "-m", "lipsformer", "predict", trained.bundle, *names, "--output", output]
        command += ["--engine", "ray", "--address", address]
        saved = []
        for lost in ("driver", "node"):
            server.hold(first)
            with log.open("wb") as file:
                driver = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, start_new_session=True)
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
    started, killed = list[Actor](), list[Actor]()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors, kill=killed.append))

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
    assert killed == started[-1:]


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
