"""Signals to the server. SIGHUP: the master passes it on, and workers look for a new bundle. SIGTERM: no more is taken.

BentoML's process manager would answer SIGHUP by ending its workers and starting others, which are lost for good if
the new bundle is broken; and at SIGTERM it keeps a door open that nobody stands behind until the last worker has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping

from circus.sighandler import SysHandler

__all__ = ["end_with_master", "ignore_hangups", "prepare_master", "when_hung_up"]

PR_SET_PDEATHSIG = 1


def ignore_hangups() -> None:
    """Until `when_hung_up`: a worker that is about to load the bundle loads the newest anyway."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def prepare_master() -> None:
    """In the master, before its workers start: has it answer signals as told above."""

    def handle_hup(handler: SysHandler) -> None:
        for watcher in handler.controller.arbiter.watchers:
            for process in watcher.processes.values():
                process.send_signal(signal.SIGHUP)

    def quit_at_once(handler: SysHandler) -> None:
        loop, listeners = handler.controller.loop, handler.controller.arbiter.sockets
        loop.add_callback_from_signal(_refuse_connections, listeners)
        leave_to_circus(handler)

    leave_to_circus = SysHandler.quit
    SysHandler.handle_hup = handle_hup
    SysHandler.quit = quit_at_once


def _refuse_connections(listeners: Mapping[str, socket.socket]) -> None:
    for listener in listeners.values():
        with contextlib.suppress(OSError):  # closed already
            listener.shutdown(socket.SHUT_RD)


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
