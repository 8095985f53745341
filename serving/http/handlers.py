"""The handlers of POST /classify and POST /classify_batch."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lipsformer.serving.observability import Metrics, RequestRecord
from lipsformer.serving.pipeline.inference import InferencePipeline
from lipsformer.serving.settings import Settings

from .answering import DEFAULT_TOP_K, Answering, Images, Result, Work
from .multipart import FORM_TYPE, Upload, is_image_type, one_image, several_images
from .problems import Problem, shown

__all__ = ["ClassifyHandlers"]


class ClassifyHandlers:
    """The handlers of our own API.

    Args:
        answering: does the work.
        settings: of this worker.
        metrics: count the refused images of batch requests.
    """

    def __init__(self, answering: Answering, settings: Settings, metrics: Metrics) -> None:
        self._answering = answering
        self._settings = settings
        self._metrics = metrics

    async def one(self, request: Request) -> Response:
        """Answers POST /classify: one image, as a form or as the body."""
        content_type = request.headers.get("content-type", "")
        media_type = _media_type(content_type)
        if media_type != FORM_TYPE and not is_image_type(media_type):
            raise _wrong_type(
                media_type, "a form with the image as a file in the field 'image', or the image itself as image/jpeg"
            )
        in_query = _parse_top_k(request.query_params.get("top_k"))
        explain = _parse_explain(request.query_params.get("explain"))

        def unpack(body: memoryview, pipeline: InferencePipeline) -> Images:
            if explain and pipeline.explanations is None:
                detail = "this bundle has no heat maps; export it with --explain, or omit explain"
                raise Problem(422, "no_heat_maps", detail)
            upload = one_image(body, content_type) if media_type == FORM_TYPE else Upload(images=(body,))
            return _images(upload, in_query, explain=explain)

        return await self._answering.answer(request, self._settings.max_body, unpack, self._respond_to_one)

    async def many(self, request: Request) -> Response:
        """Answers POST /classify_batch: a form of several images, each answered or refused separately."""
        content_type = request.headers.get("content-type", "")
        if _media_type(content_type) != FORM_TYPE:
            raise _wrong_type(_media_type(content_type), "a form with each image as a file in a field 'images'")
        in_query = _parse_top_k(request.query_params.get("top_k"))

        def unpack(body: memoryview, _: InferencePipeline) -> Images:
            return _images(several_images(body, content_type, self._settings.max_images), in_query)

        return await self._answering.answer(request, self._settings.max_batch_body, unpack, self._respond_to_many)

    async def _respond_to_one(self, work: Work[Images]) -> Response:
        result = await self._answering.classify_one(work)
        explained = {} if result.heat_map is None else {"explanation": result.heat_map.to_dict()}
        return _response({**result.classification.to_dict(), **explained, "batch": result.batch}, work)

    async def _respond_to_many(self, work: Work[Images]) -> Response:
        results = await self._answering.classify_all(work)
        named = zip(work.sent.names, results, strict=True)
        return _response({"results": [self._result(name, result) for name, result in named]}, work)

    def _result(self, name: str | None, result: Result) -> dict[str, Any]:
        if isinstance(result, Problem):
            self._metrics.refused(result.reason)
            return {"name": name, "problem": result.content()}
        return {"name": name, **result.classification.to_dict()}


def _images(upload: Upload, top_k_in_query: int | None, *, explain: bool = False) -> Images:
    top_k = top_k_in_query or _parse_top_k(upload.top_k) or DEFAULT_TOP_K
    return Images(images=upload.images, names=upload.names, top_k=top_k, explain=explain)


def _response(content: dict[str, Any], work: Work[Images]) -> Response:
    record = work.record
    return JSONResponse(
        {**content, **work.pipeline.model, "timing_ms": _timing(record), "request_id": record.request_id}
    )


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
