"""The web application: its routes, and how whatever they raise is told."""

from __future__ import annotations

from bentoml._internal.configuration.containers import BentoMLContainer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import lipsformer
from lipsformer.images.open import ImageError
from lipsformer.serving.http.auth import KeyRing
from lipsformer.serving.http.handlers import ClassifyHandlers
from lipsformer.serving.http.problems import CLIENT_CLOSED_REQUEST, Problem, problem_of
from lipsformer.serving.http.request_middleware import RequestMiddleware, record_of
from lipsformer.serving.http.web_page import page_routes
from lipsformer.serving.pipeline.admission import Overloaded
from lipsformer.serving.pipeline.model_manager import ModelManager

from .observability import Observer
from .openapi import describe_api
from .settings import Settings

__all__ = ["create_app"]

ROUTES = ("/classify", "/classify_batch", "/info", "/openapi.json", "/metrics")


def create_app(served: ModelManager, settings: Settings, keys: KeyRing | None, observer: Observer) -> ASGIApp:
    """The application that answers with what is served; everything but health checks is behind its door."""
    classifying = ClassifyHandlers(served, settings, observer)
    api = describe_api(
        version=lipsformer.__version__,
        keys=keys is not None,
        limits=settings.limits,
        max_images=settings.max_images,
    )

    async def info(_: Request) -> Response:
        return JSONResponse(served.engine.describe())

    async def openapi(_: Request) -> Response:
        return JSONResponse(api)

    async def metrics(_: Request) -> Response:
        client = BentoMLContainer.metrics_client.get()  # of all workers: `bentoml.metrics` knows this one alone
        return Response(client.generate_latest(), media_type="text/plain; version=0.0.4")  # type: ignore[no-untyped-call]

    pages = page_routes()
    routes = [
        Route("/classify", classifying.one, methods=["POST"]),
        Route("/classify_batch", classifying.many, methods=["POST"]),
        Route("/info", info, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *pages,
    ]
    errors = (Problem, ImageError, Overloaded, ClientDisconnect, HTTPException, Exception)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, _answer_error))
    door = RequestMiddleware(
        app,
        routes=(*ROUTES, *(page.path for page in pages)),
        keys=keys,
        rejection=classifying.rejection,
        observer=observer,
    )
    if not settings.cors_origins:
        return door
    return CORSMiddleware(
        door,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID"),
        expose_headers=("X-Request-ID", "Retry-After"),
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    problem = problem_of(request, error)
    if problem is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    record_of(request.scope).reason = problem.reason
    return problem.response()
