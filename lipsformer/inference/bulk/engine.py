"""The engine of bulk prediction on one machine: reading, decoding and inference at the same time, block by block.

A block is `max_batch` consecutive images of the listing, and its readable images are one batch. The rows are therefore
the same, bit for bit, however the images are divided into parts and however often the process was stopped.
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
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lipsformer.images.decoding import Decoded, DecoderPool
from lipsformer.images.open import ImageError, ImageLimits
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs
from lipsformer.system.errors import LipsFormerError, StoppedError
from lipsformer.system.hardware import cores

from .rows import Refusal, Row, text
from .settings import BulkOptions
from .sources import ListedImage, list_images
from .state import BulkState

__all__ = ["TooManyFailuresError", "predict_images"]

READ_AHEAD = 3  # blocks that are read and decoded ahead of inference
COMPUTING = 2  # blocks that the inference thread has: the second is ready when the first is done
LISTED_AT_ONCE = 256  # images
DECODE_SECONDS = 60.0  # no machine is so busy that a photo takes longer
DECODE_MEMORY = 1024**3
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Block = Sequence[tuple[int, ListedImage]]  # images by position
Opened = Sequence[Decoded | Refusal]
T = TypeVar("T")


class TooManyFailuresError(LipsFormerError):
    """More images were refused than the user allows. The state is kept."""


def predict_images(
    predictor: Predictor, state: BulkState, options: BulkOptions, advance: Callable[[int, str], None]
) -> None:
    """Computes the rows that `state` lacks. `advance` gets the number of each block's images and a remark.

    Raises:
        StoppedError: after SIGINT or SIGTERM, with the rows of all blocks that were computed saved.
        TooManyFailuresError: if more than `max_failures` images are refused.
        InputError: if this is not Linux, or the images are not those that were listed before.
    """
    asyncio.run(_Engine(predictor, state, options, advance).run())


class _Engine:
    def __init__(
        self, predictor: Predictor, state: BulkState, options: BulkOptions, advance: Callable[[int, str], None]
    ) -> None:
        self.predictor, self.state, self.options, self.advance = predictor, state, options, advance
        self.block = predictor.max_batch
        self.listed = 0  # in this run
        self.more_listed = asyncio.Event()
        self.failures = state.failures()
        self.done, self.started = 0, time.perf_counter()  # of this run
        self.signal = 0
        self.decoders = DecoderPool(
            predictor.preprocessing,
            ImageLimits(),
            processes=cores(),
            seconds=DECODE_SECONDS,
            memory=DECODE_MEMORY,
        )
        self.slots = asyncio.Semaphore(2 * cores())  # encoded images in memory
        self.readers = ThreadPoolExecutor(2 * cores(), thread_name_prefix="read")
        self.inference = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def run(self) -> None:
        """Computes all blocks, unless a signal or too many failures stop it first."""
        with self._cancel_on_signals():
            try:
                with _decoder_errors():
                    await self.decoders.start()
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
                await self.decoders.close()
                self.readers.shutdown(cancel_futures=True)
                self.inference.shutdown(cancel_futures=True)

    async def _compute_all(self) -> None:
        opening: deque[tuple[Block, asyncio.Task[Opened]]] = deque()
        computing: deque[tuple[Block, Opened, asyncio.Future[Outputs | None]]] = deque()

        async def compute_next() -> None:
            block, task = opening[0]
            opened = await task
            opening.popleft()
            computing.append((block, opened, self._infer(opened)))
            if len(computing) >= COMPUTING:
                await commit_next()

        async def commit_next() -> None:
            block, opened, outputs = computing[0]
            found = await asyncio.shield(outputs)
            computing.popleft()
            self._commit(block, opened, found)

        try:
            async with contextlib.aclosing(self._blocks()) as blocks:
                async for block in blocks:
                    opening.append((block, asyncio.create_task(self._open(block))))
                    if len(opening) > READ_AHEAD:
                        await compute_next()
            while opening:
                await compute_next()
        finally:
            for _, task in opening:
                task.cancel()
            await asyncio.gather(*(task for _, task in opening), return_exceptions=True)
            while computing:  # after a signal too: what was computed is saved
                await commit_next()

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

    async def _open(self, block: Block) -> Opened:
        return await asyncio.gather(*(self._open_image(image) for _, image in block))

    async def _open_image(self, image: ListedImage) -> Decoded | Refusal:
        async with self.slots:
            content = await asyncio.get_running_loop().run_in_executor(self.readers, image.read)
            if isinstance(content, Refusal):
                return content
            try:
                with _decoder_errors():
                    return await self.decoders.decode(content)
            except ImageError as error:
                return Refusal.of(error)

    def _infer(self, opened: Opened) -> asyncio.Future[Outputs | None]:
        """The outputs for the readable images of a block, None if there are none."""
        loop = asyncio.get_running_loop()
        pixels = [image.pixels for image in opened if isinstance(image, Decoded)]
        if not pixels:
            nothing: asyncio.Future[Outputs | None] = loop.create_future()
            nothing.set_result(None)
            return nothing
        return loop.run_in_executor(self.inference, self.predictor.runtime.infer, np.stack(pixels))

    def _commit(self, block: Block, opened: Opened, outputs: Outputs | None) -> None:
        each = iter(()) if outputs is None else outputs.each()
        rows, refused = [], 0
        for (position, image), found in zip(block, opened, strict=True):
            name = text(image.name)
            if isinstance(found, Refusal):
                refused += 1
                rows.append((position, Row.refused(name, found)))
                continue
            logits, features = next(each)
            answer = self.predictor.classify(logits, features, self.options.top_k)
            kept = features if self.options.features else None
            rows.append((position, Row.answered(name, answer, (found.width, found.height), kept)))
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


@contextlib.contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turns the failure of all decoders, which is that of no image, into one line."""
    try:
        yield
    except RuntimeError as error:
        raise LipsFormerError(f"{error}; run the same command again to resume") from None


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
