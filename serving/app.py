"""The ASGI application: its routes, and how errors become responses. It needs no BentoML; any ASGI server runs it."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import lipsformer
from lipsformer.images.open import ImageError
from lipsformer.serving.http.answering import Answering
from lipsformer.serving.http.auth import KeyRing
from lipsformer.serving.http.handlers import ClassifyHandlers
from lipsformer.serving.http.open_inference.handlers import HEALTH_PATHS, OpenInferenceHandlers
from lipsformer.serving.http.open_inference.requests import HEADER_LENGTH
from lipsformer.serving.http.problems import CLIENT_CLOSED_REQUEST, Problem, problem_of
from lipsformer.serving.http.request_middleware import RequestMiddleware, record_of
from lipsformer.serving.http.web_page import page_routes
from lipsformer.serving.pipeline.admission import Overloaded
from lipsformer.serving.pipeline.model_manager import ModelManager

from .observability import Observer
from .openapi import describe_api
from .settings import Settings

__all__ = ["create_app"]


def create_app(models: ModelManager, settings: Settings, keys: KeyRing | None, observer: Observer) -> ASGIApp:
    """The application that answers with the current model. `models` must be started before the first request."""
    answering = Answering(models, settings, observer)
    handlers = ClassifyHandlers(answering, settings, observer.metrics)
    api = describe_api(
        version=lipsformer.__version__,
        keys=keys is not None,
        limits=settings.limits,
        max_images=settings.max_images,
        model_name=settings.model_name,
    )

    async def info(_: Request) -> Response:
        return JSONResponse(models.pipeline.describe())

    async def openapi(_: Request) -> Response:
        return JSONResponse(api)

    async def metrics(_: Request) -> Response:
        return Response(observer.metrics.exposition(), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/classify", handlers.one, methods=["POST"]),
        Route("/classify_batch", handlers.many, methods=["POST"]),
        Route("/info", info, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *OpenInferenceHandlers(answering, models, settings).routes(),
        *page_routes(),
    ]
    errors = (Problem, ImageError, Overloaded, ClientDisconnect, HTTPException, Exception)
    app = RequestMiddleware(
        Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, _answer_error)),
        routes=routes,
        keyless=HEALTH_PATHS,
        keys=keys,
        rejection=answering.rejection,
        observer=observer,
    )
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", HEADER_LENGTH),
        expose_headers=("X-Request-ID", "Retry-After", HEADER_LENGTH),
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    problem = problem_of(request, error)
    if problem is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    record_of(request.scope).reason = problem.reason
    return problem.response(request.url.path)
