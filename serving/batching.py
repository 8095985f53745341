"""Micro-batching: what waits while one batch is computed is the next batch.

No request is held back to wait for company: an idle queue computes a lone image at once, and under load the batches
grow by themselves. One thread computes, so the runtime needs no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lipsformer.runtimes import Logits, Pixels

__all__ = ["Answer", "BatchQueue", "Overloaded"]


class Overloaded(Exception):  # noqa: N818 - a state of the server that is answered, not an error of its code
    """As much is pending as may be; come back later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits (K,) of one image, the size of its batch, and the seconds that it waited and that the batch took."""

    logits: Logits
    batch: int
    waited: float
    computed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Item:
    pixels: Pixels
    answer: asyncio.Future[Answer]
    since: float


class BatchQueue:
    """A queue in front of one runtime.

    Args:
        infer: maps pixels (N, S, S, 3) to logits (N, K); called in one thread only.
        max_batch: the largest N.
        max_pending: how many admissions may be open at once.
    """

    def __init__(self, infer: Callable[[Pixels], Logits], *, max_batch: int, max_pending: int) -> None:
        self.infer_batch = infer
        self.max_batch = max_batch
        self.max_pending = max_pending
        self.pending = 0
        self._waiting: asyncio.Queue[_Item] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="infer")
        self._collector: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether what is put in gets computed."""
        return self._collector is not None and not self._collector.done()

    def start(self) -> None:
        """Begins to compute; to be called in the event loop that will use the queue."""
        self._collector = asyncio.create_task(self._collect(), name="batch collector")

    async def close(self) -> None:
        """Ends after the batch that is being computed; whoever still waits gets Overloaded."""
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
        while not self._waiting.empty():
            item = self._waiting.get_nowait()
            if not item.answer.done():
                item.answer.set_exception(Overloaded("the server is stopping"))
        await asyncio.to_thread(self._thread.shutdown)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one image, held while it is decoded, waits and is computed: it bounds the memory in use.

        Raises:
            Overloaded: if every place is taken.
        """
        if self.pending >= self.max_pending:
            raise Overloaded(f"{self.pending} images are pending already")
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def infer(self, pixels: Pixels) -> Answer:
        """The answer to one image (S, S, 3). Cancelled before its batch starts, it costs nothing.

        Raises:
            Overloaded: if the queue is not running.
            Exception: whatever the runtime raises for this image alone.
        """
        if not self.running:
            raise Overloaded("the server is stopping")
        item = _Item(pixels=pixels, answer=asyncio.get_running_loop().create_future(), since=time.perf_counter())
        self._waiting.put_nowait(item)
        return await item.answer

    async def _collect(self) -> None:
        while True:
            item = await self._waiting.get()
            batch = [] if item.answer.done() else [item]  # done means cancelled: its client is gone
            while len(batch) < self.max_batch and not self._waiting.empty():
                item = self._waiting.get_nowait()
                if not item.answer.done():
                    batch.append(item)
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[_Item]) -> None:
        pixels = [item.pixels for item in batch]
        computing = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, pixels)
        try:
            started, seconds, outcomes = await asyncio.shield(computing)
        except asyncio.CancelledError:  # closing: the thread cannot be stopped, and its answers are still wanted
            started, seconds, outcomes = await computing
            self._settle(batch, started, seconds, outcomes)
            raise
        self._settle(batch, started, seconds, outcomes)

    @staticmethod
    def _settle(batch: Sequence[_Item], started: float, seconds: float, outcomes: Sequence[Logits | Exception]) -> None:
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.answer.done():
                continue
            if isinstance(outcome, Exception):
                item.answer.set_exception(outcome)
            else:
                answer = Answer(logits=outcome, batch=len(batch), waited=started - item.since, computed=seconds)
                item.answer.set_result(answer)

    def _compute(self, pixels: Sequence[Pixels]) -> tuple[float, float, Sequence[Logits | Exception]]:
        """When it started, how long it took, and one outcome for each image. Runs in the thread."""
        started = time.perf_counter()
        outcomes = self._try(pixels)
        if len(pixels) > 1 and isinstance(outcomes[0], Exception):
            # One image may have spoilt the batch for all: alone, only its own answer fails.
            outcomes = [self._try([single])[0] for single in pixels]
        return started, time.perf_counter() - started, outcomes

    def _try(self, pixels: Sequence[Pixels]) -> Sequence[Logits | Exception]:
        try:
            logits = self.infer_batch(np.stack(pixels))
            if len(logits) != len(pixels):
                raise RuntimeError(f"the runtime gave {len(logits)} answers to {len(pixels)} images")
        except Exception as error:  # noqa: BLE001 - runtimes raise types of their own, and every waiter needs an outcome
            return [error] * len(pixels)
        return list(logits)
