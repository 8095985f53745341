"""The program of a decoder process: it decodes one image at a time, under limits that it cannot lift.

It is started by its path, with its owner's import path, so that it loads only Pillow, NumPy and two of our modules.
The protocol uses the socket that is its standard input. A request is the number of encoded bytes, which follow the
pixels in the shared area. The reply is `DONE` with the image's upright width and height (the pixels are at the start of
the area), or a reason and a message. The process ends when its owner closes the socket, or dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from lipsformer.images.formats import load_plugins
from lipsformer.images.open import Box, ImageError, ImageLimits, too_much_memory
from lipsformer.images.preprocessing import Preprocessing

__all__ = ["DONE", "READY"]

READY = b"ready"
DONE = "done"

OPEN_FILES = 16  # enough for a module that is imported late
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Decodes until the socket is closed."""
    task = json.loads(sys.argv[1])
    _die_with(task["parent"])
    preprocessing = Preprocessing.from_dict(task["preprocessing"])
    limits = ImageLimits(**task["limits"])
    area, size = task["area"], preprocessing.image_size
    width = height = 0

    def box(upright: tuple[int, int]) -> Box:
        nonlocal width, height
        width, height = upright
        return preprocessing.center_box(upright)

    shared = np.frombuffer(mmap.mmap(area, 3 * size * size), np.uint8).reshape(size, size, 3)
    channel = socket.socket(fileno=sys.stdin.fileno())
    _warm_up(preprocessing)
    _silence_libraries()
    _confine(task["memory"])
    channel.send(READY)
    while request := channel.recv(32):
        content = b""  # frees the last image
        try:
            content = os.pread(area, int(request), shared.nbytes)
            shared[:] = preprocessing.read(content, limits=limits, box=box)
            reply = f"{DONE} {width} {height}"
        except ImageError as error:
            reply = f"{error.reason} {error}"
        except MemoryError:
            reply = f"too_much_memory {too_much_memory('image')}"
        channel.send(reply.encode(errors="replace"))


def _warm_up(preprocessing: Preprocessing) -> None:
    """Imports what is imported lazily, so that the first image neither waits for it nor fails at the limits."""
    Image.init()
    load_plugins()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the processes are the parallelism
    preprocessing.apply(Image.new("RGB", (2, 2)))


def _silence_libraries() -> None:
    """Keeps libtiff's messages about damaged files out of its owner's log, but not our own tracebacks."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)


def _die_with(parent: int) -> None:
    """Makes the kernel end this process with its owner, even while it decodes, and denies it new privileges."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died in between
        raise SystemExit


def _confine(memory: int) -> None:
    """Restricts this process permanently: `memory` bytes beyond those in use now, no file writes, no core dump."""
    with contextlib.suppress(OSError):  # if memory still runs out, a decoder is killed before its owner
        Path("/proc/self/oom_score_adj").write_text("1000")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    for kind, most in (
        (resource.RLIMIT_AS, in_use + memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
