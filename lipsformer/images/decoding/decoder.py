"""A decoder process, as its owner handles it: no call blocks on it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lipsformer
from lipsformer.images.open import ImageLimits
from lipsformer.images.preprocessing import Pixels, Preprocessing
from lipsformer.system.errors import InputError

__all__ = ["Decoded", "Decoder", "Image", "check_system"]

Image = bytes | bytearray | memoryview

PROGRAM = Path(__file__).with_name("process.py")
LONGEST_REPLY = 4096
KEPT = 1024 * 1024  # bytes for an encoded image that the shared area keeps allocated between two images

# A terminal or supervisor sends these signals to all processes. Decoders must survive them: their owner finishes what
# it has begun, and ends the decoders itself.
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INHERITED = (
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
)  # Python may need them to start; nothing else is passed on, least of all secrets


class Decoded(NamedTuple):
    """The network input (S, S, 3) of an image, and the image's own upright size in pixels."""

    pixels: Pixels
    width: int
    height: int


class Decoder:
    """A process that decodes one image at a time.

    `process.py` describes the protocol. The shared area is an in-memory file that is written and read here, never
    mapped: whatever a process does to it, the owner gets an error and not a fault.

    Args:
        on_message: called with each message of the process, and once with b"" when it has ended or cannot be read.

    Raises:
        OSError: if the process cannot be started.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        memory: int,
        on_message: Callable[[Decoder, bytes], None],
    ) -> None:
        self.ready = False
        self.process: subprocess.Popen[bytes] | None = None
        self._shape = (preprocessing.image_size, preprocessing.image_size, 3)
        self._offset = 3 * preprocessing.image_size**2
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._area = os.memfd_create("lipsformer-image", os.MFD_CLOEXEC)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(self._area, self._offset)
            task = {
                "area": self._area,
                "memory": memory,
                "parent": os.getpid(),
                "preprocessing": preprocessing.to_dict(),
                "limits": dataclasses.asdict(limits),
            }
            with theirs:
                self.process = _start(json.dumps(task), theirs, self._area)
            self._channel.setblocking(False)
            self._loop.add_reader(self._channel.fileno(), self.receive)
        except BaseException:
            self.end()
            raise

    def send(self, image: Image) -> None:
        """Sends an encoded image to be decoded.

        Raises:
            OSError: if the process is gone, or there is no memory for the image.
        """
        if os.pwrite(self._area, image, self._offset) != len(image):
            raise OSError("no memory to hand over an image")
        self._channel.send(b"%d" % len(image))

    def pixels(self) -> Pixels | None:
        """The decoded image (S, S, 3), or None if the area does not hold it."""
        pixels = np.empty(self._shape, np.uint8)
        return pixels if os.preadv(self._area, [pixels.data], 0) == pixels.nbytes else None

    def release(self) -> None:
        """Frees the memory of a large image."""
        if os.fstat(self._area).st_size > self._offset + KEPT:
            os.ftruncate(self._area, self._offset + KEPT)

    def receive(self) -> None:
        """Passes on a message of the process, if there is one."""
        try:
            message = self._channel.recv(LONGEST_REPLY)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._on_message(self, message)

    def end(self) -> None:
        """Kills the process, whatever it is doing, and frees its resources."""
        if self._channel.fileno() < 0:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        os.close(self._area)
        if self.process is not None:
            self.process.kill()

    def reap(self) -> bool:
        """Whether the process is gone from the process table."""
        return self.process is None or self.process.poll() is not None


def check_system() -> None:
    """Refuses a system on which decoder processes do not run.

    Raises:
        InputError: unless it is Linux.
    """
    if not hasattr(os, "memfd_create"):
        raise InputError(f"decoder processes need Linux, and this is {sys.platform}; run it in a Linux container")


def _start(task: str, channel: socket.socket, area: int) -> subprocess.Popen[bytes]:
    # Where this process found its modules, and where lipsformer lies, which an editable install finds otherwise.
    paths = [path for path in sys.path if path] + [str(Path(lipsformer.__file__).parents[1])]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "1",  # another arena for each thread would take 64 MiB of the address space
        "OPENBLAS_NUM_THREADS": "1",
    }
    # Blocked signals stay blocked in the child process, from its first instruction on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", str(PROGRAM), task], stdin=channel.fileno(), pass_fds=[area], env=environment
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
