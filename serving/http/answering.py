"""From a request to the answers for its images: the body, admission, the pipeline, and what is recorded of it.

The routes of our API and those of the Open Inference Protocol share one `Answering`, and so its limits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from lipsformer.inference.runtimes import Pixels
from lipsformer.serving.observability import Classified, Observer, RequestRecord, Span
from lipsformer.serving.pipeline.admission import Admission, Overloaded, Slot
from lipsformer.serving.pipeline.inference import Answered, InferencePipeline
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings

from .problems import Problem, as_problem
from .request_body import BodyReader, while_connected
from .request_middleware import record_of

__all__ = ["DEFAULT_TOP_K", "Answering", "Images", "Result", "Work"]

DEFAULT_TOP_K = 5
BODIES_HELD = 16  # times the largest image: the memory that all bodies together may take
READING_PER_SLOT = 8  # more than slots, because a body that arrives slowly must not keep complete ones out
LATER = 0.05  # seconds by which each further image of a batch request is put back in the decoders' queue
TO_ANSWER = 0.1  # seconds before the deadline at which a batch is answered with the results so far

Result = Answered | Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a request in order: encoded, or the network's own pixels (S, S, 3); and how many classes to give.

    `names` are those that a form gives them. With `explain`, the answer has a heat map.
    """

    images: tuple[memoryview | Pixels, ...]
    names: tuple[str | None, ...] = ()
    top_k: int = DEFAULT_TOP_K
    explain: bool = False


Sent = TypeVar("Sent", bound=Images)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Work(Generic[Sent]):
    """Admitted images, the pipeline that classifies them, and the deadline on the event loop's clock."""

    pipeline: InferencePipeline
    sent: Sent
    slot: Slot
    record: RequestRecord
    deadline: float


class Answering:
    """Answers requests within one worker's limits on bodies, images in flight and time.

    Args:
        models: provides the current pipeline.
        settings: of this worker.
        observer: its metrics count, and it says whether predictions are kept.
    """

    def __init__(self, models: ModelManager, settings: Settings, observer: Observer) -> None:
        self._models = models
        self._settings = settings
        self._observer = observer
        self._metrics = observer.metrics
        self._admission = Admission(max_pending=settings.max_pending, deadline=settings.deadline, metrics=self._metrics)
        self._body_reader = BodyReader(
            max_bytes=BODIES_HELD * settings.limits.max_bytes,
            max_reading=READING_PER_SLOT * settings.max_pending,
            timeout=settings.read_timeout,
            metrics=self._metrics,
        )

    def rejection(self) -> Problem | None:
        """The refusal of a request that would come in now, before anything is spent on it; None if there is room."""
        try:
            self._admission.check()
        except Overloaded as error:
            return as_problem(error)
        return None

    async def answer(
        self,
        request: Request,
        limit: int,
        unpack: Callable[[memoryview, InferencePipeline], Sent],
        respond: Callable[[Work[Sent]], Coroutine[Any, Any, Response]],
    ) -> Response:
        """Reads a body of at most `limit` bytes, and gives the response that `respond` makes of what it contains.

        Raises:
            Problem: if the request is refused.
            Overloaded: if there is no room.
            ClientDisconnect: if the client disconnected first.
        """
        record = record_of(request.scope)
        try:
            async with asyncio.timeout(self._settings.deadline) as deadline:
                async with self._body_reader.receive(request, limit) as body:
                    record.bytes = len(body)
                    record.spans.append(Span(stage="read", start=record.start, end=time.perf_counter()))
                    with self._models.use() as pipeline:
                        sent = unpack(body, pipeline)
                        record.images = len(sent.images)
                        with self._admission.enter() as slot:
                            work = Work(
                                pipeline=pipeline, sent=sent, slot=slot, record=record, deadline=deadline.when() or 0.0
                            )
                            return await while_connected(request, respond(work))
        except TimeoutError:
            raise self._too_late() from None

    async def classify_one(self, work: Work[Sent]) -> Answered:
        """The answer to the only image.

        Raises:
            Problem: if it is refused.
        """
        (image,) = work.sent.images
        try:
            result = await work.pipeline.classify(image, work.sent.top_k, explain=work.sent.explain)
        except Exception as error:
            raise as_problem(error) from error
        self._note(work, image, result)
        return result

    async def classify_all(self, work: Work[Sent]) -> list[Result]:
        """The results of all images, in order; those that are not ready just before the deadline are too late.

        As many images are classified at once as fit a batch and find a slot; the slot that `work` has ensures progress.
        """
        results: dict[int, Result] = {}
        turns = iter(enumerate(work.sent.images))

        async def take_turns(slot: Slot) -> None:
            for turn, (index, image) in enumerate(turns):
                if turn:
                    slot.next()
                since = work.record.start + index * LATER
                try:
                    result = await work.pipeline.classify(image, work.sent.top_k, since=since)
                    self._note(work, image, result)
                    results[index] = result
                except Exception as error:  # noqa: BLE001 - reported in the result of this image
                    results[index] = as_problem(error)

        async def one_more() -> None:
            try:
                with self._admission.enter() as slot:
                    await take_turns(slot)
            except Overloaded:
                return

        more = min(work.pipeline.max_batch, len(work.sent.images)) - 1
        tasks = [
            asyncio.ensure_future(take_turns(work.slot)),
            *(asyncio.ensure_future(one_more()) for _ in range(more)),
        ]
        try:
            left = work.deadline - asyncio.get_running_loop().time() - TO_ANSWER
            await asyncio.wait(tasks, timeout=max(0.0, left))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [results.get(index) or self._too_late() for index in range(len(work.sent.images))]

    def _note(self, work: Work[Sent], image: memoryview | Pixels, result: Answered) -> None:
        record = work.record
        record.spans.extend(result.spans)
        record.batches.append(result.batch)
        if result.classification.reason is not None:
            self._metrics.not_accepted(result.classification.reason)
        if work.pipeline.drift is not None:
            work.pipeline.drift.put(result.classification)
        if work.pipeline.shadow is not None:
            work.pipeline.shadow.offer(result.pixels, result.classification[0], record.request_id)
        if self._observer.keeps_predictions:
            file = work.pipeline.file
            record.sha256, record.precision = file.sha256, file.precision
            record.predictions.append(Classified(bytes=image.nbytes, classification=result.classification))

    def _too_late(self) -> Problem:
        detail = f"not answered within {self._settings.deadline} seconds; try again later or send a smaller image"
        return Problem(504, "deadline_exceeded", detail, {"Retry-After": "1"})
