"""The handlers of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import lipsformer
from lipsformer.serving.http.answering import Answering, Work
from lipsformer.serving.http.problems import PROTOCOL, Problem, shown
from lipsformer.serving.pipeline.inference import Answered, InferencePipeline
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings

from .requests import HEADER_LENGTH, InferenceRequest, parse_request
from .responses import infer_response
from .tensors import input_tensors, output_tensors

__all__ = ["EXTENSIONS", "HEALTH_PATHS", "MODEL_PATHS", "OpenInferenceHandlers"]

EXTENSIONS = ("binary_tensor_data", "classification")
LIVE, READY = HEALTH_PATHS = (f"{PROTOCOL}/health/live", f"{PROTOCOL}/health/ready")
MODEL_PATHS = (f"{PROTOCOL}/models/{{model}}", f"{PROTOCOL}/models/{{model}}/versions/{{version}}")
VERSION_DIGITS = 12
PLATFORMS = {"ort": "onnxruntime_onnx", "openvino": "openvino", "tensorrt": "tensorrt_plan"}  # Triton's names


class OpenInferenceHandlers:
    """The handlers, which give one model. Its version is the start of the SHA-256 of the file that runs.

    Args:
        answering: does the work.
        models: provides the current pipeline.
        settings: of this worker, with the model's name.
    """

    def __init__(self, answering: Answering, models: ModelManager, settings: Settings) -> None:
        self._answering = answering
        self._models = models
        self._settings = settings

    def routes(self) -> list[Route]:
        """The routes of the protocol."""
        routes = [
            Route(PROTOCOL, self._server, methods=["GET"]),
            Route(LIVE, self._live, methods=["GET"]),
            Route(READY, self._ready, methods=["GET"]),
        ]
        for path in MODEL_PATHS:
            routes += [
                Route(path, self._model, methods=["GET"]),
                Route(f"{path}/ready", self._model_ready, methods=["GET"]),
                Route(f"{path}/infer", self._infer, methods=["POST"]),
            ]
        return routes

    async def _server(self, _: Request) -> Response:
        return JSONResponse(
            {"name": lipsformer.__name__, "version": lipsformer.__version__, "extensions": list(EXTENSIONS)}
        )

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _: Request) -> Response:
        return self._readiness({})

    async def _model(self, request: Request) -> Response:
        pipeline = self._models.pipeline
        self._check(request, pipeline)
        file = pipeline.file
        return JSONResponse(
            {
                "name": self._settings.model_name,
                "versions": [_version(pipeline)],
                "platform": PLATFORMS.get(file.target or "", file.target),
                "inputs": [tensor.to_dict() for tensor in input_tensors(pipeline)],
                "outputs": [tensor.to_dict() for tensor in output_tensors(pipeline)],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        self._check(request, self._models.pipeline)
        return self._readiness({"name": self._settings.model_name})

    async def _infer(self, request: Request) -> Response:
        header_length = request.headers.get(HEADER_LENGTH)

        def unpack(body: memoryview, pipeline: InferencePipeline) -> InferenceRequest:
            self._check(request, pipeline)
            return parse_request(
                body,
                header_length,
                inputs=input_tensors(pipeline),
                outputs=output_tensors(pipeline),
                max_images=self._settings.max_images,
            )

        return await self._answering.answer(request, self._settings.max_batch_body, unpack, self._respond)

    async def _respond(self, work: Work[InferenceRequest]) -> Response:
        return infer_response(
            work.sent,
            await self._answers(work),
            work.pipeline.manifest.classes,
            name=self._settings.model_name,
            version=_version(work.pipeline),
        )

    async def _answers(self, work: Work[InferenceRequest]) -> list[Answered]:
        """The answers to all images; the protocol has no refusal of one of several."""
        if len(work.sent.images) == 1:
            return [await self._answering.classify_one(work)]
        answers = []
        for index, result in enumerate(await self._answering.classify_all(work)):
            if isinstance(result, Problem):
                raise Problem(result.status, result.reason, f"image {index}: {result.detail}", result.headers)
            answers.append(result)
        return answers

    def _readiness(self, content: dict[str, Any]) -> Response:
        ready = self._models.running
        return JSONResponse({**content, "ready": ready}, 200 if ready else 503)

    def _check(self, request: Request, pipeline: InferencePipeline) -> None:
        """Checks that a path names the model, and its version if any."""
        name, version = request.path_params["model"], request.path_params.get("version")
        if name != self._settings.model_name:
            raise Problem(404, "unknown_model", f"no model {shown(name)}; the model is {self._settings.model_name}")
        if version is not None and version != _version(pipeline):
            found = _version(pipeline)
            raise Problem(404, "unknown_model", f"no version {shown(version)}; the model's version is {found}")


def _version(pipeline: InferencePipeline) -> str:
    return pipeline.file.sha256[:VERSION_DIGITS]
