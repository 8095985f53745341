"""Server processes on a free loopback port: started, ready, and ended with all their children."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

__all__ = ["Server", "free_port", "our_server", "running"]

START_SECONDS = 90
STOP_SECONDS = 45


class Server:
    """A running server: `address` is HOST:PORT, `process` its first process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path, farewell: signal.Signals) -> None:
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}/classify"
        self.process = process
        self.log = log
        self.farewell = farewell

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET.

        Raises:
            OSError: if there is no answer.
        """
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None
        finally:
            connection.close()

    def wait_until_ready(self, path: str) -> None:
        """Returns once GET `path` answers 200.

        Raises:
            RuntimeError: if the server ends, or is not ready in time.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if self.get(path)[0] == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def tree(self) -> list[psutil.Process]:
        """Its processes, the first one first."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """Ends it as a user does, and by force what is left of its processes after that."""
        tree = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(self.farewell)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(tree, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                print(f"still alive after {STOP_SECONDS} s, killed: {process.cmdline()[:6]}", file=sys.stderr)
                process.kill()
        psutil.wait_procs(alive, timeout=5)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    ready: str,
    farewell: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Runs a server and ends it with the signal `farewell`; `ready` is the path that answers 200 once it serves."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, cwd=log.parent, env={**os.environ, **(environment or {})}
        )
    server = Server(port, process, log, farewell)
    try:
        server.wait_until_ready(ready)
        yield server
    finally:
        server.stop()


def our_server(
    bundle: Path, log: Path, *options: str, checkout: Path | None = None, **settings: str
) -> contextlib.AbstractContextManager[Server]:
    """`lipsformer serve` with command-line options, and settings such as THREADS for LIPSFORMER_THREADS.

    It is this checkout's own, or that of `checkout`.
    """
    port = free_port()
    command = [sys.executable, "-m", "lipsformer", "serve", str(bundle.absolute()), "--port", str(port), *options]
    environment = {f"LIPSFORMER_{name}": value for name, value in settings.items()}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout.absolute())
    return running(command, port, log, ready="/readyz", environment=environment)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
