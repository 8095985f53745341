"""Problem details (RFC 9457): a stable reason for programs, and a text for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from lipsformer.images.open import ImageError
from lipsformer.serving.pipeline.admission import Overloaded

__all__ = ["CLIENT_CLOSED_REQUEST", "PROTOCOL", "REASONS", "Problem", "as_problem", "problem_of", "shown"]

logger = logging.getLogger("lipsformer.serving")

PROTOCOL = "/v2"  # where the Open Inference Protocol's paths begin
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; the metrics count it separately from real responses

# Every reason of a refusal, with its status. Clients depend on them: add new ones, never rename one.
REASONS = {
    "empty": 400,
    "missing_field": 400,
    "malformed_form": 400,
    "malformed_request": 400,
    "several_images": 400,
    "bad_top_k": 400,
    "bad_explain": 400,
    "unauthorised": 401,
    "not_found": 404,
    "unknown_model": 404,
    "refused": 405,
    "slow_upload": 408,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "too_many_images": 413,
    "too_many_values": 413,
    "too_much_memory": 413,
    "not_an_image": 415,
    "wrong_content_encoding": 415,
    "wrong_content_type": 415,
    "damaged": 422,
    "not_a_file": 422,
    "no_heat_maps": 422,
    "too_slow": 422,
    "too_complex": 422,
    "internal_error": 500,
    "overloaded": 503,
    "stopping": 503,
    "deadline_exceeded": 504,
}


class Problem(Exception):  # noqa: N818 - the term of the standard
    """A refused request: its HTTP status, a stable reason, and what to do about it."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = headers

    def content(self) -> dict[str, Any]:
        """The problem details as plain data."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }

    def response(self, path: str) -> JSONResponse:
        """The response to a request of `path`: application/problem+json, or the Open Inference Protocol's own form."""
        if path == PROTOCOL or path.startswith(f"{PROTOCOL}/"):
            return JSONResponse({"error": self.detail}, self.status, self.headers)
        return JSONResponse(self.content(), self.status, self.headers, media_type="application/problem+json")


def problem_of(request: Request, error: Exception) -> Problem | None:
    """The refusal of `request` that `error` leads to; None if its client is gone."""
    match error:
        case ClientDisconnect():
            return None
        case HTTPException(status_code=404):
            path = shown(request.url.path, most=200)
            return Problem(404, "not_found", f"nothing is at {path}; POST an image to /classify, or open /")
        case HTTPException():
            allowed = " or ".join(sorted((error.headers or {}).get("Allow", "another method").split(", ")))
            detail = f"{request.url.path} does not support {shown(request.method)}; use {allowed}"
            return Problem(error.status_code, "refused", detail, error.headers)
        case _:
            return as_problem(error)


def shown(text: str, most: int = 100) -> str:
    """A value from a request, for a problem's detail: quoted, in ASCII, at most `most` characters of it."""
    return f"{text[:most]!a}{'...' if len(text) > most else ''}"


def as_problem(error: Exception) -> Problem:
    """The refusal that `error` leads to. An unexpected error is logged, and reported without detail."""
    match error:
        case Problem():
            return error
        case ImageError():
            return Problem(REASONS[error.reason], error.reason, str(error))
        case Overloaded():
            return Problem(503, error.reason, f"{error}; try again shortly", {"Retry-After": str(error.retry_after)})
        case _:
            logger.error("a request failed: %r", error, exc_info=error)
            return Problem(500, "internal_error", "the server failed on this request; its log says why")
