"""POST /classify and POST /classify_batch: from a request to its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lipsformer.serving.observability import Classified, Metrics, Observer, RequestRecord, Stage
from lipsformer.serving.pipeline.admission import Admission, Overloaded, Slot
from lipsformer.serving.pipeline.inference import Classification, InferencePipeline
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings

from .multipart import FORM_TYPE, Upload, is_image_type, one_image, several_images
from .problems import Problem, as_problem
from .request_body import BodyReader, while_connected
from .request_middleware import record_of

__all__ = ["ClassifyHandlers"]

DEFAULT_TOP_K = 5
BODIES_HELD = 16  # times the largest image: the memory that all bodies together may take
READING_FOR_EACH_PLACE = 8  # a body that arrives slowly must not keep those out that are here
LATER = 0.05  # seconds that each further image of a batch request stands back in the decoders' queue
TO_ANSWER = 0.1  # seconds before the deadline at which a batch is answered with what there is

Result = Classification | Problem


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """An upload that has a place: by which engine, for how many classes, until when on the event loop's clock."""

    engine: InferencePipeline
    upload: Upload
    top_k: int
    place: Slot
    record: RequestRecord
    deadline: float


class ClassifyHandlers:
    """The two ways to have images classified.

    Args:
        served: the engine that answers now.
        settings: of this worker.
        observer: its metrics are counted, and told is whether predictions are kept.
    """

    def __init__(self, served: ModelManager, settings: Settings, observer: Observer) -> None:
        self._served = served
        self._settings = settings
        self._observer = observer
        self._metrics: Metrics = observer.metrics
        self._admission = Admission(max_pending=settings.max_pending, deadline=settings.deadline, metrics=self._metrics)
        self._bodies = BodyReader(
            max_bytes=BODIES_HELD * settings.limits.max_bytes,
            max_reading=READING_FOR_EACH_PLACE * settings.max_pending,
            timeout=settings.read_timeout,
            metrics=self._metrics,
        )

    def rejection(self) -> Problem | None:
        """The refusal of whatever would come in now, before anything is spent on it; None if there is room."""
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
                media_type, "a form with the photo in the field 'image', or the photo itself as image/jpeg"
            )

        def unpack(body: memoryview) -> Upload:
            return one_image(body, content_type) if media_type == FORM_TYPE else Upload(images=(body,))

        return await self._answer(request, self._settings.max_body, unpack, self._classify_one)

    async def many(self, request: Request) -> Response:
        """Answers POST /classify_batch: a form of several images, each answered or refused on its own."""
        content_type = request.headers.get("content-type", "")
        if _media_type(content_type) != FORM_TYPE:
            raise _wrong_type(_media_type(content_type), "a form with each photo as a file in a field 'images'")

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
        in_query = request.query_params.get("top_k")
        wanted = None if in_query is None else _parse_top_k(in_query)
        try:
            async with asyncio.timeout(self._settings.deadline) as deadline:
                async with self._bodies.receive(request, limit) as body:
                    record.bytes = len(body)
                    record.stages.append(Stage(name="read", start=record.start, end=time.perf_counter()))
                    upload = unpack(body)
                    in_form = _parse_top_k(upload.top_k)
                    top_k = wanted or in_form
                    record.images = len(upload.images)
                    with self._admission.enter() as place, self._served.use() as engine:
                        work = Work(
                            engine=engine,
                            upload=upload,
                            top_k=top_k,
                            place=place,
                            record=record,
                            deadline=deadline.when() or 0.0,
                        )
                        content = await while_connected(request, classify(work))
        except TimeoutError:
            raise self._too_late() from None
        return JSONResponse({**content, **engine.model, "timing_ms": _timing(record), "request_id": record.request_id})

    async def _classify_one(self, work: Work) -> dict[str, Any]:
        image = work.upload.images[0]
        try:
            result = await work.engine.classify(image, work.top_k)
        except Exception as error:
            raise as_problem(error) from error
        self._note(work, image, result)
        return {"predictions": [vars(prediction) for prediction in result.predictions], "batch": result.batch}

    async def _classify_many(self, work: Work) -> dict[str, Any]:
        """Takes as many images at once as make a batch and find a place; with its one place it goes on in any case."""
        results: dict[int, Result] = {}
        turns = iter(enumerate(work.upload.images))

        async def take_turns(place: Slot) -> None:
            for turn, (index, image) in enumerate(turns):
                if turn:
                    place.next()
                try:
                    result = await work.engine.classify(image, work.top_k, since=work.record.start + index * LATER)
                    self._note(work, image, result)
                    results[index] = result
                except Exception as error:  # noqa: BLE001 - one image's fault is told in its own answer
                    problem = results[index] = as_problem(error)
                    self._metrics.refused(problem.reason)

        async def one_more() -> None:
            try:
                with self._admission.enter() as place:
                    await take_turns(place)
            except Overloaded:
                return

        more = min(work.engine.max_batch, len(work.upload.images)) - 1
        tasks = [
            asyncio.ensure_future(take_turns(work.place)),
            *(asyncio.ensure_future(one_more()) for _ in range(more)),
        ]
        try:
            left = work.deadline - asyncio.get_running_loop().time() - TO_ANSWER
            await asyncio.wait(tasks, timeout=max(0.0, left))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {"results": [self._told(name, results.get(index)) for index, name in enumerate(work.upload.names)]}

    def _told(self, name: str | None, result: Result | None) -> dict[str, Any]:
        if isinstance(result, Classification):
            return {"name": name, "predictions": [vars(prediction) for prediction in result.predictions]}
        return {"name": name, "problem": (result or self._too_late()).content()}

    def _note(self, work: Work, image: memoryview, result: Classification) -> None:
        record = work.record
        record.stages.extend(result.stages)
        record.batches.append(result.batch)
        if self._observer.keeps_predictions:
            file = work.engine.file
            record.sha256, record.precision = file.sha256, file.precision
            record.predictions.append(Classified(bytes=len(image), predictions=result.predictions))

    def _too_late(self) -> Problem:
        detail = f"not answered within {self._settings.deadline} seconds; try again later or send a smaller image"
        return Problem(504, "deadline_exceeded", detail, {"Retry-After": "1"})


def _timing(record: RequestRecord) -> dict[str, float]:
    """Milliseconds by stage, of which several images have several, and in all."""
    stages: dict[str, float] = {}
    for stage in record.stages:
        stages[stage.name] = stages.get(stage.name, 0.0) + stage.end - stage.start
    stages["total"] = time.perf_counter() - record.start
    return {name: round(seconds * 1000, 2) for name, seconds in stages.items()}


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _wrong_type(media_type: str, wanted: str) -> Problem:
    detail = f"content type {(media_type[:100] or 'none')!a} cannot be classified; send {wanted}"
    return Problem(415, "wrong_content_type", detail)


def _parse_top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Problem(400, "bad_top_k", f"top_k={text[:20]!a}: a whole number from 1 on is needed")
    return int(text)
