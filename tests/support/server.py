"""A real server process on a real socket, shared by all tests that talk HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from tests.support.trained import Trained

START_SECONDS = 90


@contextlib.contextmanager
def serving(model: Path | str, log: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serves `model` as a user would; gives the URL and the process, ready to answer, and ends it."""
    command = [sys.executable, "-m", "lipsformer", "serve", str(model)]
    with running(command, log, {**os.environ, **environment}) as found:
        yield found


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Runs a command that serves, with a free port; gives the URL and the process, ready to answer, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port], stdout=sink, stderr=sink, env=environment, cwd=cwd
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once /readyz answers 200."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server stopped: {log.read_text()}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready within {START_SECONDS} s: {log.read_text()}")


@pytest.fixture(scope="session")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of the small bundle, with tight limits."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    limits = {"LIPSFORMER_MAX_BYTES": "300000", "LIPSFORMER_MAX_PIXELS": "1000000"}
    with serving(trained.bundle, log, **limits) as (url, _):
        yield url
