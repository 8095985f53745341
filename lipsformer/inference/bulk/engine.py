"""The engine of bulk prediction: it lists the images, has blocks of them computed, and commits their rows in order.

A block is `max_batch` consecutive images of the listing, and its readable images are one batch. The rows are therefore
the same, bit for bit, whoever computes them, however they are divided into parts and however often it was stopped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Protocol, TypeVar

from lipsformer.system.errors import LipsFormerError, StoppedError

from .pipeline import Block, Rows
from .rows import OK
from .settings import BulkOptions
from .sources import list_images
from .state import BulkState

__all__ = ["TooManyFailuresError", "Workers", "predict_images"]

LISTED_AT_ONCE = 256  # images
SIGNALS = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class TooManyFailuresError(LipsFormerError):
    """More images were refused than the user allows. The state is kept."""


class Workers(Protocol):
    """What computes rows: the pipeline of this machine, or those of a cluster. `window` is how many blocks at once."""

    @property
    def window(self) -> int: ...

    async def start(self) -> None: ...

    async def compute(self, block: Block) -> Rows: ...

    async def close(self) -> None: ...


def predict_images(
    workers: Callable[[], Workers],
    state: BulkState,
    options: BulkOptions,
    block: int,
    advance: Callable[[int, str], None],
) -> None:
    """Computes the rows that `state` lacks, in blocks of `block` images.

    `workers` are made in the event loop. `advance` gets the number of each block's images and a remark.

    Raises:
        StoppedError: after SIGINT or SIGTERM, with the rows of all blocks that were computed saved.
        TooManyFailuresError: if more than `max_failures` images are refused.
        InputError: if this is not Linux, or the images are not those that were listed before.
    """

    async def run() -> None:
        await _Engine(workers(), state, options, block, advance).run()

    asyncio.run(run())


class _Engine:
    def __init__(
        self,
        workers: Workers,
        state: BulkState,
        options: BulkOptions,
        block: int,
        advance: Callable[[int, str], None],
    ) -> None:
        self.workers, self.state, self.options, self.block, self.advance = workers, state, options, block, advance
        self.listed = 0  # in this run
        self.more_listed = asyncio.Event()
        self.failures = state.failures()
        self.done, self.started = 0, time.perf_counter()  # of this run
        self.signal = 0

    async def run(self) -> None:
        """Computes all blocks, unless a signal or too many failures stop it first."""
        with self._cancel_on_signals():
            try:
                await self.workers.start()
                self._count_refused(0)
                await self._compute_all()
            except asyncio.CancelledError:
                if not self.signal:
                    raise
                done = self.state.counts().total()
                raise StoppedError(
                    f"{self.state.path}: stopped, {done:,} images done; run the same command again to resume",
                    self.signal,
                ) from None
            finally:
                await self.workers.close()

    async def _compute_all(self) -> None:
        window: deque[asyncio.Task[Rows]] = deque()
        try:
            async with contextlib.aclosing(self._blocks()) as blocks:
                async for block in blocks:
                    window.append(asyncio.create_task(self.workers.compute(block)))
                    if len(window) >= self.workers.window:
                        await self._commit_first(window)
            while window:
                await self._commit_first(window)
        finally:
            for task in window:
                task.cancel()
            for found in await asyncio.gather(*window, return_exceptions=True):
                if not isinstance(found, BaseException):  # after a signal too: what was computed is saved
                    self._commit(found)

    async def _commit_first(self, window: deque[asyncio.Task[Rows]]) -> None:
        rows = await asyncio.shield(window[0])
        window.popleft()
        self._commit(rows)

    async def _blocks(self) -> AsyncGenerator[Block]:
        """The blocks of this part that are not finished, as soon as their images are listed."""
        listing = asyncio.create_task(self._list())
        try:
            for number in itertools.count():
                start, end = number * self.block, (number + 1) * self.block
                while self.state.total is None and self.listed < end:
                    if listing.done():
                        listing.result()  # raises what ended it
                    self.more_listed.clear()
                    await self.more_listed.wait()
                if self.state.total is not None and start >= self.state.total:
                    return
                if self.options.part.has(number) and (block := self.state.unfinished(start, end)):
                    yield block
        finally:
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)

    async def _list(self) -> None:
        """Lists all images into the state, ahead of the blocks, unless an earlier run has done so."""
        images = list_images(self.options.sources, self.options.column)
        digest = hashlib.sha256()
        try:
            while self.state.total is None:
                listed = await _in_daemon_thread(lambda: list(itertools.islice(images, LISTED_AT_ONCE)))
                own = [
                    (position, image)
                    for position, image in enumerate(listed, self.listed)
                    if self.options.part.has(position // self.block)
                ]
                self._count_refused(self.state.add(own))
                digest.update(b"".join(os.fsencode(image.name) + b"\0" for image in listed))
                self.listed += len(listed)
                if not listed:
                    self.state.end_listing(self.listed, digest.hexdigest())
                self.more_listed.set()
        finally:
            self.more_listed.set()

    def _commit(self, rows: Rows) -> None:
        refused = sum(row.status != OK for _, row in rows)
        self.state.commit(rows)
        self.advance(len(rows) - refused, self._remark(len(rows) - refused))
        self._count_refused(refused)

    def _count_refused(self, refused: int) -> None:
        self.failures += refused
        if refused:
            self.advance(refused, self._remark(refused))
        most = self.options.max_failures
        if most is not None and self.failures > most:
            raise TooManyFailuresError(
                f"{self.state.path}: stopped, {self.failures:,} images refused, over --max-failures {most}; "
                "run the same command with a larger number to resume"
            )

    def _remark(self, done: int) -> str:
        self.done += done
        rate = self.done / (time.perf_counter() - self.started)
        return f"{rate:,.1f} images/s" + (f", {self.failures:,} refused" if self.failures else "")

    @contextlib.contextmanager
    def _cancel_on_signals(self) -> Iterator[None]:
        """Within the block, the first signal cancels the task that is running now. The second ends the process."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if threading.current_thread() is not threading.main_thread() or task is None:
            yield
            return

        def stop(number: signal.Signals) -> None:
            restore()
            self.signal = number
            task.cancel()

        def restore() -> None:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

        for number in SIGNALS:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            restore()


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """What the function returns. Unlike a pool's thread it may wait for stdin forever, without delaying the exit."""
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def call() -> None:
        answer.set_running_or_notify_cancel()
        try:
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return await asyncio.wrap_future(answer)
