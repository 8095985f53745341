"""The rows of a Ray cluster of two nodes are those of one machine, whatever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.bulk import bulk
from tests.support.command import Run
from tests.support.trained import Trained

CLUSTER = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
MEMORY = 100_000_000  # bytes of a node's object store
REPEATS = 60


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
        started = []
        for options in where:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
            command += ["--num-cpus=1", f"--object-store-memory={MEMORY}", "--disable-usage-stats", "--block"]
            log = stack.enter_context(Path(folder, f"node{len(started)}.log").open("wb"))
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(kill, node)
            started.append(node)
            wait_for(Path(log.name), b"Ray runtime started", node)
        yield f"127.0.0.1:{port}", started


def kill(node: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it started, also in other sessions."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(30)


def wait_for(log: Path, text: bytes, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_driver_and_a_lost_node_change_nothing(
    trained: Trained, tmp_path: Path, nodes: tuple[str, list[subprocess.Popen[bytes]]], environment: dict[str, str]
) -> None:
    address, (_, other) = nodes
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = [*sorted(SAMPLES.glob("*.jpg")), broken] * REPEATS
    expected = bulk(load_predictor(trained.bundle, threads=1), tmp_path / "local.jsonl", *images)
    output, log = tmp_path / "rows.jsonl", tmp_path / "log"
    names = [*map(str, images)]
    command = [sys.executable, "-m", "lipsformer", "predict", trained.bundle, *names, "--output", output]
    command += ["--engine", "ray", "--address", address]
    for attempt in range(2):
        with log.open("wb") as file:
            driver = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            try:
                wait_for(log, b"Ray: 2 of 2 nodes compute", driver)
                time.sleep(1)
                assert driver.poll() is None, "it was done before anything was killed"
                if attempt == 0:
                    kill(driver)
                    assert output.with_name("rows.jsonl.partial").exists()
                    assert not output.exists()
                else:
                    kill(other)
                    assert driver.wait(240) == 0, log.read_text()
            finally:
                kill(driver)
    assert output.read_bytes() == expected
    assert b"its worker is gone" in log.read_bytes()


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
