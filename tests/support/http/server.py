"""Servers for tests that talk HTTP: a real server process, and the plain application in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest
import uvicorn

from lipsformer.serving.app import create_app
from lipsformer.serving.http.auth import KeyRing
from lipsformer.serving.observability import Observer, RequestRecord, open_metrics
from lipsformer.serving.observability.background import Background
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings
from tests.support.trained import Trained

START_SECONDS = 90


class RecordingObserver(Observer):
    """Keeps the records of all requests, and writes no log."""

    def __init__(self) -> None:
        lines = Background[str](lambda _: None, name="no log", capacity=0)
        super().__init__(metrics=open_metrics(), lines=lines, access_log=False, tracer=None, monitor=None)
        self.records: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
        super().observe(record)
        self.records.append(record)


@dataclasses.dataclass(frozen=True, kw_only=True)
class App:
    """The application at `url`, and the records of the requests that have ended."""

    url: str
    records: list[RequestRecord]


@contextlib.contextmanager
def app_running(bundle: Path, **environment: str) -> Iterator[App]:
    """Serves a bundle in a thread of this process, without BentoML: it starts in a moment, and has no health checks.

    `environment` names settings without their prefix: MAX_PENDING="1".
    """
    variables = {"LIPSFORMER_BUNDLE": str(bundle)} | {f"LIPSFORMER_{key}": text for key, text in environment.items()}
    settings = Settings.from_environment(variables)
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    observer = RecordingObserver()
    listener = socket.create_server(("127.0.0.1", 0))
    started, ending, failed = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        models = ModelManager(settings, observer.metrics, on_lost=lambda: None)
        await models.start()
        config = uvicorn.Config(create_app(models, settings, keys, observer), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve([listener]))
        started.set()
        await ending.wait()
        server.should_exit = True
        await serving
        await models.close()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - reported by the test, not by the thread
            failed.append(error)
        finally:
            started.set()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=run, name="application")
    thread.start()
    try:
        assert started.wait(START_SECONDS)
        assert not failed, failed
        yield App(url=f"http://127.0.0.1:{listener.getsockname()[1]}", records=observer.records)
    finally:
        if not failed:
            loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()
        listener.close()
        observer.close()


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


KEY = "a-key-of-a-test-and-of-nothing-else"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keyed:
    """A server at `url` that needs `KEY`, and its log."""

    url: str
    log: Path


@pytest.fixture(scope="session")
def keyed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A server process that needs a key."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"{KEY}\n")
    options = {"API_KEYS_FILE": str(folder / "keys"), "MAX_IMAGES": "8", "WORKERS": "1"}
    variables = {f"LIPSFORMER_{name}": value for name, value in options.items()}
    with serving(trained.bundle, folder / "server.log", **variables) as (url, _):
        yield Keyed(url=url, log=folder / "server.log")


@pytest.fixture(scope="session")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of the small bundle, with tight limits."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    limits = {"LIPSFORMER_MAX_BYTES": "300000", "LIPSFORMER_MAX_PIXELS": "1000000"}
    with serving(trained.bundle, log, **limits) as (url, _):
        yield url
