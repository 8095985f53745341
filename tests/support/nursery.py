"""Real processes that start in no time: a process imports PyTorch once, then forks a child for each command.

Python and PyTorch take longer to start than a tiny training takes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

__all__ = ["Nursery", "nursery", "only_nursery"]

REPOSITORY = Path(__file__).parents[2]
PRELOADED = (
    "matplotlib.backends.backend_agg",
    "torch._dynamo",  # an optimizer's first step imports it
    "lipsformer.train",
    "tests.support.tiny_training",
)


class Nursery:
    """Starts `lipsformer` commands in processes of one thread each, one at a time."""

    def __init__(self) -> None:
        self.running: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a line that was read ahead would be missed by `select`
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._number("ready", 300)  # once the imports are done

    def start(self, words: Sequence[object], log: Path, *, processes: int = 1, restarts: int | None = None) -> int:
        """Starts `lipsformer WORDS` and returns its process; its stdout and stderr are appended to `log`.

        With more than one of `processes`, that is their parent. With a number of `restarts`, it is torchrun's agent.
        """
        assert self.process.stdin is not None
        line = json.dumps([str(log), [str(word) for word in words], processes, restarts])
        self.process.stdin.write(f"{line}\n".encode())
        self.running = self._number("started", 60)
        return self.running

    def wait(self, seconds: float) -> int | None:
        """How the command ended: its status, or minus a signal. None if it has not ended within `seconds`."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            return None
        self.running = None
        return self._number("ended", 60)

    def clear(self) -> None:
        """Kills the command with its processes, unless `wait` has seen its end."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(self.running, signal.SIGKILL)
            self.running = None
            self._number("ended", 60)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _number(self, wanted: str, seconds: float) -> int:
        """That of the next line, which must say what is `wanted`: an exit status is no process to kill."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, "the command hangs"
        word, number = self.process.stdout.readline().decode().split()
        assert word == wanted, f"{word} {number} instead of {wanted}"
        return int(number)


@pytest.fixture(scope="session")
def only_nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(only_nursery: Nursery) -> Iterator[Nursery]:
    """The nursery of all tests; none leaves a command to the next."""
    yield only_nursery
    only_nursery.clear()


def run_command(words: Sequence[str]) -> NoReturn:
    """Runs `lipsformer WORDS` in this process and exits."""
    from lipsformer.cli import main
    from tests.support.tiny_training import blank_plots

    sys.argv = ["lipsformer", *words]
    with blank_plots():
        main()
    raise AssertionError("the command always exits")


def run_distributed(words: Sequence[str], processes: int) -> int:
    """Runs `lipsformer WORDS` in some processes, with the variables that torchrun sets; returns the worst status."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
            end(lambda: run_command(words))
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def run_elastic(words: Sequence[str], processes: int, restarts: int) -> int:
    """Runs `lipsformer WORDS` in some processes as torchrun does, but that these are forked."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        max_restarts=restarts,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="nursery",
        start_method="fork",
    )
    elastic_launch(config, run_worker)(words)
    return 0


def run_worker(words: Sequence[str]) -> None:
    """Runs `lipsformer WORDS` in this process, and returns if that succeeds: an exit would count as a failure."""
    try:
        run_command(words)
    except SystemExit as stop:
        if stop.code:
            raise


def end(work: Callable[[], int]) -> NoReturn:
    """Ends this process with the status that `work` returns or exits with."""
    status = 1
    try:
        status = work()
    except SystemExit as stop:
        status = int(stop.code or 0)
    except Exception:  # noqa: BLE001 - as Python itself would
        traceback.print_exc()
    finally:
        os._exit(status)


def run_child(log: str, words: Sequence[str], processes: int, restarts: int | None) -> NoReturn:
    """What a forked child does."""
    os.setpgid(0, 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    if restarts is not None:
        end(lambda: run_elastic(words, processes, restarts))
    end(lambda: run_command(words) if processes == 1 else run_distributed(words, processes))


def say(what: str, number: int) -> None:
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


def main() -> None:
    """Writes a line once it is ready, then forks a child for each line on stdin and writes its process and its end."""
    for module in PRELOADED:
        importlib.import_module(module)
    say("ready", os.getpid())
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_child(*json.loads(line))
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the child did it
            os.setpgid(child, child)  # before anybody hears of it, and may kill its group
        say("started", child)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
