"""A pool of decoder processes: a file that hangs, bloats or crashes costs one process, never its owner."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import heapq
import itertools
import re
import time
from collections.abc import Callable
from typing import Literal, get_args

from lipsformer.images.open import ImageError, ImageLimits, Reason, check_bytes
from lipsformer.images.preprocessing import Preprocessing

from .decoder import Decoded, Decoder, Image, check_system
from .process import DONE, READY

__all__ = ["DecoderPool"]

Cause = Literal["timeout", "crash"]

SIZE = re.compile(r"\d{1,9} \d{1,9}", re.ASCII)

# About what a JPEG takes on one core. An image queues as if it had arrived that much later, so small images overtake a
# large one, but only those that arrive within that time.
SECONDS_PER_BYTE = 50e-9
START_SECONDS = 60.0
FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds before the next attempt, when processes die while they start
REAP_SECONDS, REAP_STEPS = 0.02, 100  # between checks for whether killed processes are gone; checks while closing
FAILURES = 3  # failed starts in a row after which no image waits for a process


@dataclasses.dataclass(kw_only=True, order=True, slots=True)
class _Job:
    position: float
    number: int
    image: Image = dataclasses.field(compare=False)
    decoded: asyncio.Future[Decoded] = dataclasses.field(compare=False)


class DecoderPool:
    """Decodes and preprocesses images in `processes` child processes. Use it in one event loop, in one thread.

    The processes end with the thread that called `start`.

    Args:
        preprocessing: applied to each image.
        limits: the largest image.
        processes: number of child processes.
        seconds: time limit for one image, after which its process is killed.
        memory: bytes that a process may use for one image.
        on_exit: called with the cause when a process dies or is killed.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        *,
        processes: int,
        seconds: float,
        memory: int,
        on_exit: Callable[[Cause], None] = lambda _: None,
    ) -> None:
        self.limits = limits
        self.processes = processes
        self.seconds = seconds
        self._on_exit = on_exit
        self._new_decoder = functools.partial(Decoder, preprocessing, limits, memory, self._on_message)
        self._living: set[Decoder] = set()
        self._idle: list[Decoder] = []
        self._ended: list[Decoder] = []  # killed, not yet gone
        self._reaping: asyncio.TimerHandle | None = None
        self._busy: dict[Decoder, _Job] = {}
        self._timers: dict[Decoder, asyncio.TimerHandle] = {}  # they end a process that starts or decodes for too long
        self._waiting: list[_Job] = []  # a heap
        self._numbers = itertools.count()
        self._failures = 0  # failed starts in a row
        self._started: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Images that wait for a process."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Processes that are decoding."""
        return len(self._busy)

    async def start(self) -> None:
        """Starts all processes, and returns when all are ready.

        Raises:
            InputError: if this system does not support it.
            RuntimeError: if a process cannot be started.
        """
        check_system()
        self._started = asyncio.get_running_loop().create_future()
        for _ in range(self.processes):
            self._add()
        try:
            await self._started
        except BaseException:
            await self.close()
            raise

    async def decode(self, image: Image, *, since: float | None = None) -> Decoded:
        """The network input of an encoded image, in a new array, and the image's size.

        While all processes are busy, images queue by size and by `since`, the `time.perf_counter()` of their arrival
        (by default now). `image` must not change meanwhile.

        Raises:
            ImageError: if it is refused, as by `open_image`; as "too_slow" if it took longer than `seconds`; as
                "too_much_memory" if it took more than `memory` or crashed its process.
            RuntimeError: if the pool is closed, or no process can be started.
        """
        check_bytes(len(image), "image", self.limits)  # a batch request's body may be larger than an image
        if self._closed:
            raise RuntimeError("the decoders are closed")
        if self._failures >= FAILURES and not self._idle and not self._busy:
            raise RuntimeError("no decoder process can be started; the log says why")
        job = _Job(
            position=(time.perf_counter() if since is None else since) + SECONDS_PER_BYTE * len(image),
            number=next(self._numbers),
            image=image,
            decoded=asyncio.get_running_loop().create_future(),
        )
        heapq.heappush(self._waiting, job)
        self._dispatch()
        try:
            return await job.decoded
        except asyncio.CancelledError:
            if job in self._waiting:
                self._waiting.remove(job)
                heapq.heapify(self._waiting)
            raise

    async def close(self) -> None:
        """Kills all processes, whatever they are doing; images that still wait get a RuntimeError."""
        self._closed = True
        self._give_up("the decoders are closed")
        if self._started is not None and not self._started.done():
            self._started.set_exception(RuntimeError("the decoders are closed"))
        for decoder in list(self._living):
            self._forget(decoder)
        for _ in range(REAP_STEPS):
            if not self._ended:
                break
            await asyncio.sleep(REAP_SECONDS)

    def _add(self) -> None:
        if self._closed:
            return
        try:
            decoder = self._new_decoder()
        except OSError as error:
            self._failed(str(error))
            return
        self._living.add(decoder)
        self._watch(decoder, START_SECONDS)

    def _watch(self, decoder: Decoder, seconds: float) -> None:
        self._timers[decoder] = asyncio.get_running_loop().call_later(seconds, self._overdue, decoder)

    def _dispatch(self) -> None:
        """Sends the waiting images, in order, to the idle processes."""
        while self._waiting and self._idle:
            job = heapq.heappop(self._waiting)
            if job.decoded.done():  # cancelled just now
                continue
            decoder = self._idle.pop()
            try:
                decoder.send(job.image)
            except ConnectionError:  # it died while idle, which says nothing about this image
                heapq.heappush(self._waiting, job)
                self._replace(decoder, "crash")
                continue
            except OSError as error:
                self._idle.append(decoder)
                job.decoded.set_exception(RuntimeError(f"an image cannot be sent to a decoder ({error})"))
                continue
            self._busy[decoder] = job
            self._watch(decoder, self.seconds)

    def _on_message(self, decoder: Decoder, message: bytes) -> None:
        """Handles a message of a process. Nothing in it is trusted, except the pixels of its image."""
        job = self._busy.get(decoder)
        outcome = None if job is None else self._outcome(decoder, message)
        if job is None and message == READY and not decoder.ready:
            decoder.ready = True
            self._failures = 0
        elif job is not None and outcome is not None:
            _settle(job, outcome)
            decoder.release()
        else:
            self._replace(decoder, "crash")
            return
        self._busy.pop(decoder, None)
        self._timers.pop(decoder).cancel()
        self._idle.append(decoder)
        if self._started is not None and not self._started.done() and len(self._idle) == self.processes:
            self._started.set_result(None)
        self._dispatch()

    def _outcome(self, decoder: Decoder, message: bytes) -> Decoded | ImageError | None:
        """The image or the refusal that a message reports; None if it reports neither."""
        reason, _, text = message.decode(errors="replace").partition(" ")
        if reason == DONE:
            size, pixels = self._size(text), decoder.pixels()
            return None if size is None or pixels is None else Decoded(pixels, *size)
        for known in get_args(Reason):
            if reason == known:
                return ImageError(known, " ".join(text.split()))
        return None

    def _size(self, text: str) -> tuple[int, int] | None:
        """The width and height that a message reports; None unless an image may have them."""
        if SIZE.fullmatch(text) is None:
            return None
        width, height = map(int, text.split())
        return (width, height) if 0 < width * height <= self.limits.max_pixels else None

    def _overdue(self, decoder: Decoder) -> None:
        timer = self._timers[decoder]
        decoder.receive()  # this process itself may have been too slow to read
        if self._timers.get(decoder) is timer:
            self._replace(decoder, "timeout")

    def _replace(self, decoder: Decoder, cause: Cause) -> None:
        """Replaces a process that has ended or must end, and refuses the image that it was decoding."""
        job = self._busy.get(decoder)
        self._forget(decoder)
        self._on_exit(cause)
        if job is not None:
            _settle(job, self._refusal(cause))
        if decoder.ready:
            asyncio.get_running_loop().call_soon(self._add)
        else:
            self._failed("it ended while it started")

    def _refusal(self, cause: Cause) -> ImageError:
        if cause == "timeout":
            return ImageError(
                "too_slow", f"image: not decoded within {self.seconds:g} s; scale it down, or save it again"
            )
        return ImageError("too_much_memory", "image: it crashed its decoder; scale it down, or save it as JPEG or PNG")

    def _failed(self, why: str) -> None:
        """Schedules another start, later each time, without blocking."""
        message = f"a decoder process cannot be started: {why}"
        self._failures += 1
        if self._started is not None and not self._started.done():
            self._started.set_exception(RuntimeError(message))
            return
        if self._failures >= FAILURES and not self._idle and not self._busy:
            self._give_up(message)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**self._failures)
        asyncio.get_running_loop().call_later(delay, self._add)

    def _give_up(self, message: str) -> None:
        for job in [*self._busy.values(), *self._waiting]:
            _settle(job, RuntimeError(message))
        self._busy.clear()
        self._waiting.clear()

    def _forget(self, decoder: Decoder) -> None:
        decoder.end()
        self._living.discard(decoder)
        if decoder in self._idle:
            self._idle.remove(decoder)
        self._busy.pop(decoder, None)
        if timer := self._timers.pop(decoder, None):
            timer.cancel()
        self._ended.append(decoder)
        self._reap()

    def _reap(self) -> None:
        self._ended = [decoder for decoder in self._ended if not decoder.reap()]
        if self._ended and self._reaping is None:
            self._reaping = asyncio.get_running_loop().call_later(REAP_SECONDS, self._reap_again)

    def _reap_again(self) -> None:
        self._reaping = None
        self._reap()


def _settle(job: _Job, outcome: Decoded | Exception) -> None:
    if job.decoded.done():  # cancelled: nobody waits for it
        return
    if isinstance(outcome, Exception):
        job.decoded.set_exception(outcome)
    else:
        job.decoded.set_result(outcome)
