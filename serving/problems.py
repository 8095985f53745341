"""Refusals as the web tells them: problem details (RFC 9457), a stable reason for programs and words for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lipsformer.images import ImageError

from .batching import Overloaded

__all__ = ["Problem", "answer_error"]

logger = logging.getLogger("lipsformer.serving")

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; the metrics count it apart from real answers

IMAGE_STATUS = {
    "empty": 400,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "damaged": 422,
}


class Problem(Exception):  # noqa: N818 - the standard's own word
    """A request that is refused: HTTP status, stable reason, and what to do about it."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = headers

    def response(self) -> JSONResponse:
        """The answer as application/problem+json."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        headers = {"X-Content-Type-Options": "nosniff", **(self.headers or {})}
        return JSONResponse(content, self.status, headers, media_type="application/problem+json")


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of whatever a route raises: refusals with their reason, faults without any detail."""
    match error:
        case Problem():
            return error.response()
        case ImageError():
            return Problem(IMAGE_STATUS[error.reason], error.reason, str(error)).response()
        case Overloaded():
            return Problem(503, "overloaded", f"{error}; try again shortly", {"Retry-After": "1"}).response()
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        case HTTPException(status_code=404):
            detail = f"nothing is at {request.url.path}; POST a photo to /classify, or open /"
            return Problem(404, "not_found", detail).response()
        case HTTPException():
            detail = f"{request.method} {request.url.path}: {error.detail}"
            return Problem(error.status_code, "refused", detail, error.headers).response()
        case _:
            logger.error("%s %s failed: %r", request.method, request.url.path, error)
            return Problem(500, "internal_error", "the server failed on this request; its log says why").response()
