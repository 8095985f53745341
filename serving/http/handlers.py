"""The handlers of POST /classify and POST /classify_batch."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lipsformer.serving.observability import Classified, Metrics, Observer, RequestRecord, Span
from lipsformer.serving.pipeline.admission import Admission, Overloaded, Slot
from lipsformer.serving.pipeline.inference import Answered, InferencePipeline
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings

from .multipart import FORM_TYPE, Upload, is_image_type, one_image, several_images
from .problems import Problem, as_problem, shown
from .request_body import BodyReader, while_connected
from .request_middleware import record_of

__all__ = ["ClassifyHandlers"]

DEFAULT_TOP_K = 5
BODIES_HELD = 16  # times the largest image: the memory that all bodies together may take
READING_PER_SLOT = 8  # more than slots, because a body that arrives slowly must not keep complete ones out
LATER = 0.05  # seconds by which each further image of a batch request is put back in the decoders' queue
TO_ANSWER = 0.1  # seconds before the deadline at which a batch is answered with the results so far

Result = Answered | Problem


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """An admitted upload, the pipeline that classifies it, and the deadline on the event loop's clock.

    With `explain`, the answer has a heat map.
    """

    pipeline: InferencePipeline
    upload: Upload
    top_k: int
    explain: bool
    slot: Slot
    record: RequestRecord
    deadline: float


class ClassifyHandlers:
    """The handlers, which share admission control and the memory for bodies.

    Args:
        models: provides the current pipeline.
        settings: of this worker.
        observer: its metrics count, and it says whether predictions are kept.
    """

    def __init__(self, models: ModelManager, settings: Settings, observer: Observer) -> None:
        self._models = models
        self._settings = settings
        self._observer = observer
        self._metrics: Metrics = observer.metrics
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

    async def one(self, request: Request) -> Response:
        """Answers POST /classify: one image, as a form or as the body."""
        content_type = request.headers.get("content-type", "")
        media_type = _media_type(content_type)
        if media_type != FORM_TYPE and not is_image_type(media_type):
            raise _wrong_type(
                media_type, "a form with the image as a file in the field 'image', or the image itself as image/jpeg"
            )

        def unpack(body: memoryview) -> Upload:
            return one_image(body, content_type) if media_type == FORM_TYPE else Upload(images=(body,))

        return await self._answer(request, self._settings.max_body, unpack, self._classify_one)

    async def many(self, request: Request) -> Response:
        """Answers POST /classify_batch: a form of several images, each answered or refused separately."""
        content_type = request.headers.get("content-type", "")
        if _media_type(content_type) != FORM_TYPE:
            raise _wrong_type(_media_type(content_type), "a form with each image as a file in a field 'images'")

        def unpack(body: memoryview) -> Upload:
            return several_images(body, content_type, self._settings.max_images)

        return await self._answer(request, self._settings.max_batch_body, unpack, self._classify_many)

    async def _answer(
        self,
        request: Request,
        limit: int,
        unpack: Callable[[memoryview], Upload],
        classify: Callable[[Work], Coroutine[Any, Any, dict[str, Any]]],
    ) -> Response:
        record = record_of(request.scope)
        in_query = _parse_top_k(request.query_params.get("top_k"))
        explain = _parse_explain(request.query_params.get("explain"))
        try:
            async with asyncio.timeout(self._settings.deadline) as deadline:
                async with self._body_reader.receive(request, limit) as body:
                    record.bytes = len(body)
                    record.spans.append(Span(stage="read", start=record.start, end=time.perf_counter()))
                    upload = unpack(body)
                    in_form = _parse_top_k(upload.top_k)
                    record.images = len(upload.images)
                    with self._admission.enter() as slot, self._models.use() as pipeline:
                        work = Work(
                            pipeline=pipeline,
                            upload=upload,
                            top_k=in_query or in_form or DEFAULT_TOP_K,
                            explain=explain,
                            slot=slot,
                            record=record,
                            deadline=deadline.when() or 0.0,
                        )
                        content = await while_connected(request, classify(work))
        except TimeoutError:
            raise self._too_late() from None
        return JSONResponse(
            {**content, **pipeline.model, "timing_ms": _timing(record), "request_id": record.request_id}
        )

    async def _classify_one(self, work: Work) -> dict[str, Any]:
        image = work.upload.images[0]
        if work.explain and work.pipeline.explanations is None:
            raise Problem(
                422, "no_heat_maps", "this bundle has no heat maps; export it with --explain, or omit explain"
            )
        try:
            result = await work.pipeline.classify(image, work.top_k, explain=work.explain)
        except Exception as error:
            raise as_problem(error) from error
        self._note(work, image, result)
        explained = {} if result.heat_map is None else {"explanation": result.heat_map.to_dict()}
        return {**result.classification.to_dict(), **explained, "batch": result.batch}

    async def _classify_many(self, work: Work) -> dict[str, Any]:
        """Classifies as many images at once as fit a batch and find a slot; the slot that it has ensures progress."""
        results: dict[int, Result] = {}
        turns = iter(enumerate(work.upload.images))

        async def take_turns(slot: Slot) -> None:
            for turn, (index, image) in enumerate(turns):
                if turn:
                    slot.next()
                try:
                    result = await work.pipeline.classify(image, work.top_k, since=work.record.start + index * LATER)
                    self._note(work, image, result)
                    results[index] = result
                except Exception as error:  # noqa: BLE001 - reported in the result of this image
                    problem = results[index] = as_problem(error)
                    self._metrics.refused(problem.reason)

        async def one_more() -> None:
            try:
                with self._admission.enter() as slot:
                    await take_turns(slot)
            except Overloaded:
                return

        more = min(work.pipeline.max_batch, len(work.upload.images)) - 1
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
        return {"results": [self._result(name, results.get(index)) for index, name in enumerate(work.upload.names)]}

    def _result(self, name: str | None, result: Result | None) -> dict[str, Any]:
        if isinstance(result, Answered):
            return {"name": name, **result.classification.to_dict()}
        return {"name": name, "problem": (result or self._too_late()).content()}

    def _note(self, work: Work, image: memoryview, result: Answered) -> None:
        record = work.record
        record.spans.extend(result.spans)
        record.batches.append(result.batch)
        if result.classification.reason is not None:
            self._metrics.not_accepted(result.classification.reason)
        if self._observer.keeps_predictions:
            file = work.pipeline.file
            record.sha256, record.precision = file.sha256, file.precision
            record.predictions.append(Classified(bytes=len(image), classification=result.classification))

    def _too_late(self) -> Problem:
        detail = f"not answered within {self._settings.deadline} seconds; try again later or send a smaller image"
        return Problem(504, "deadline_exceeded", detail, {"Retry-After": "1"})


def _timing(record: RequestRecord) -> dict[str, float]:
    """Milliseconds by stage, summed over the images, and in total."""
    total = time.perf_counter() - record.start
    return {stage: round(seconds * 1000, 2) for stage, seconds in {**record.seconds_by_stage(), "total": total}.items()}


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _wrong_type(media_type: str, wanted: str) -> Problem:
    given = f"content type {shown(media_type)}" if media_type else "a body without a content type"
    return Problem(415, "wrong_content_type", f"{given} cannot be classified; send {wanted}")


def _parse_top_k(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Problem(400, "bad_top_k", f"top_k={shown(text, most=20)}: a whole number of at least 1 is needed")
    return int(text)


def _parse_explain(text: str | None) -> bool:
    if text not in (None, "0", "1"):
        raise Problem(400, "bad_explain", f"explain={shown(text or '', most=20)}: 1 for a heat map, or 0")
    return text == "1"
