"""Micro-batching: the images that arrive while one batch is computed form the next batch.

No image is delayed to fill a batch. An idle queue computes a single image at once; under load the batches grow by
themselves, up to the size beyond which larger ones give no more images per second. One thread computes, so the runtime
needs no lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lipsformer.inference.runtimes import Outputs, Pixels
from lipsformer.serving.observability import Metrics

from .admission import Overloaded
from .fault_isolation import Outcome

__all__ = ["Answer", "BatchQueue"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The outputs for one image, the size of its batch, and when that started and ended (`time.perf_counter`)."""

    outputs: Outputs
    batch: int
    started: float
    done: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    pixels: Pixels
    answer: asyncio.Future[Answer]


class BatchQueue:
    """A queue in front of one runtime.

    Args:
        run: maps images (S, S, 3) to one outcome each; called in one thread only. If it raises, the queue stops.
        max_batch: largest number of images in a call.
        metrics: gets the queue depth and the batch sizes.
        on_lost: called after `run` has raised.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Pixels]], list[Outcome]],
        *,
        max_batch: int,
        metrics: Metrics,
        on_lost: Callable[[], None],
    ) -> None:
        self.max_batch = max_batch
        self._run = run
        self._metrics = metrics
        self._on_lost = on_lost
        self._waiting: deque[_Item] = deque()
        self._filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="infer")
        self._collector: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether queued images are computed."""
        return self._collector is not None and not self._collector.done()

    def start(self) -> None:
        """Starts computing. Call it in the event loop that will use the queue."""
        self._collector = asyncio.create_task(self._collect(), name="batch collector")

    async def close(self) -> None:
        """Stops after the batch that is being computed; images that still wait get Overloaded."""
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def infer(self, pixels: Pixels) -> Answer:
        """The answer for one image (S, S, 3). If cancelled before its batch starts, it is not computed.

        Raises:
            Overloaded: if the queue is not running.
            Exception: whatever the runtime raises for this image alone.
        """
        if not self.running:
            raise _stopping()
        item = _Item(pixels=pixels, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._metrics.queue_depth.set(len(self._waiting))
        self._filled.set()
        return await item.answer

    async def _collect(self) -> None:
        try:
            while True:
                await self._filled.wait()
                batch = self._next_batch()
                if batch:
                    await self._answer(batch)
        finally:
            while self._waiting:
                item = self._waiting.popleft()
                if not item.answer.done():
                    item.answer.set_exception(_stopping())
            self._metrics.queue_depth.set(0)

    def _next_batch(self) -> list[_Item]:
        batch: list[_Item] = []
        while self._waiting and len(batch) < self.max_batch:
            item = self._waiting.popleft()
            if not item.answer.done():  # done means cancelled: nobody waits for it
                batch.append(item)
        if not self._waiting:
            self._filled.clear()
        self._metrics.queue_depth.set(len(self._waiting))
        return batch

    async def _answer(self, batch: Sequence[_Item]) -> None:
        images = [item.pixels for item in batch]
        self._metrics.batch_size.observe(len(batch))
        started = time.perf_counter()
        computing = asyncio.get_running_loop().run_in_executor(self._thread, self._run, images)
        try:
            outcomes = await asyncio.shield(computing)
        except asyncio.CancelledError:  # closing: the thread cannot be stopped, and its answers are still needed
            _settle(batch, started, await computing)
            raise
        except Exception:
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(_stopping())
            self._on_lost()
            raise
        _settle(batch, started, outcomes)


def _settle(batch: Sequence[_Item], started: float, outcomes: Sequence[Outcome]) -> None:
    done = time.perf_counter()
    for item, outcome in zip(batch, outcomes, strict=True):
        if item.answer.done():
            continue
        if isinstance(outcome, Exception):
            item.answer.set_exception(outcome)
        else:
            item.answer.set_result(Answer(outputs=outcome, batch=len(batch), started=started, done=done))


def _stopping() -> Overloaded:
    return Overloaded("the server is stopping", reason="stopping")
