"""SIGHUP to the server: the master passes it on, and each worker looks for a new bundle.

BentoML's process manager would answer SIGHUP by ending its workers and starting others, which are lost for good if
the new bundle is broken.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Awaitable, Callable

from circus.sighandler import SysHandler

__all__ = ["end_with_master", "ignore_hangups", "pass_hangups_on", "when_hung_up"]

PR_SET_PDEATHSIG = 1


def ignore_hangups() -> None:
    """Until `when_hung_up`: a worker that is about to load the bundle loads the newest anyway."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def pass_hangups_on() -> None:
    """In the master, before its workers start: SIGHUP goes to them and does nothing else."""

    def handle_hup(handler: SysHandler) -> None:
        for watcher in handler.controller.arbiter.watchers:
            for process in watcher.processes.values():
                process.send_signal(signal.SIGHUP)

    SysHandler.handle_hup = handle_hup


def when_hung_up(look: Callable[[], Awaitable[object]]) -> None:
    """In a worker: `look` is run in this event loop at every SIGHUP."""
    running: set[asyncio.Future[object]] = set()

    def begin() -> None:
        task = asyncio.ensure_future(look())
        running.add(task)
        task.add_done_callback(running.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)


def end_with_master() -> None:
    """In a worker: it drains and ends when the master is gone, which nothing else would tell it."""
    master = os.getppid()
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != master:  # gone in between
        os.kill(os.getpid(), signal.SIGTERM)
