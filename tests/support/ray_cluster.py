"""A Ray cluster of two nodes on this machine, whose processes can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

__all__ = ["await_", "environment", "kill", "ray_cluster"]

CLUSTER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "300",  # a lost node is found after five checks
    "RAY_health_check_initial_delay_ms": "1000",
}
MEMORY = 100_000_000  # bytes of a node's object store


def environment() -> dict[str, str]:
    """The variables of the nodes and of the processes that use them."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, **CLUSTER, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yields the address of a cluster, and the process of the node that is not its head. Each has some CPUs."""
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
            command += [f"--num-cpus={cpus}", f"--object-store-memory={MEMORY}", "--disable-usage-stats", "--block"]
            log = stack.enter_context(Path(folder, f"node{len(started)}.log").open("wb"))
            node = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
            stack.callback(kill, node)
            started.append(node)
        for number, node in enumerate(started):
            path = Path(folder, f"node{number}.log")
            await_(lambda path=path: b"Ray runtime started" in path.read_bytes(), path, node)
        yield f"127.0.0.1:{port}", started[1]


def kill(node: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it started, also in other sessions."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(30)


def await_(done: Callable[[], bool], log: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until something happens, while the process runs."""
    deadline = time.monotonic() + 300
    while not done():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
