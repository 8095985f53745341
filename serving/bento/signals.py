"""Signals to the server. SIGHUP makes the workers look for a new bundle; SIGTERM stops new connections at once.

BentoML's process manager, circus, would answer SIGHUP by replacing its workers, which are lost for good if the new
bundle is broken. After SIGTERM it would keep the listening socket open, with nobody to accept, until the last worker
has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping

from circus.sighandler import SysHandler

__all__ = ["end_with_master", "on_hangup", "prepare_master", "remember_hangups"]

PR_SET_PDEATHSIG = 1


_early = threading.Event()  # SIGHUP came before `on_hangup`


def remember_hangups() -> None:
    """Keeps a SIGHUP for `on_hangup`: a worker that is loading may have looked at the bundle before it was replaced."""
    _early.clear()
    signal.signal(signal.SIGHUP, lambda *_: _early.set())


def prepare_master() -> None:
    """Installs the behavior described above in the master, before its workers start."""

    def handle_hup(handler: SysHandler) -> None:
        for watcher in handler.controller.arbiter.watchers:
            for process in watcher.processes.values():
                process.send_signal(signal.SIGHUP)

    def quit_at_once(handler: SysHandler) -> None:
        loop, listeners = handler.controller.loop, handler.controller.arbiter.sockets
        loop.add_callback_from_signal(_refuse_connections, listeners)
        circus_quit(handler)

    circus_quit = SysHandler.quit
    SysHandler.handle_hup = handle_hup
    SysHandler.quit = quit_at_once


def _refuse_connections(listeners: Mapping[str, socket.socket]) -> None:
    for listener in listeners.values():
        with contextlib.suppress(OSError):  # closed already
            listener.shutdown(socket.SHUT_RD)


def on_hangup(reload: Callable[[], Awaitable[object]]) -> None:
    """Runs `reload` in this worker's event loop at every SIGHUP, and now if one came early."""
    running: set[asyncio.Future[object]] = set()

    def begin() -> None:
        task = asyncio.ensure_future(reload())
        running.add(task)
        task.add_done_callback(running.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)
    if _early.is_set():
        begin()


def end_with_master() -> None:
    """Makes this worker drain and end when its master is gone; nothing else would notify it."""
    master = os.getppid()
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != master:  # gone in between
        os.kill(os.getpid(), signal.SIGTERM)
