"""Refusals as the web tells them: problem details (RFC 9457), with a stable reason for programs and words for people."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from lipsformer.images import ImageError

__all__ = ["Problem"]

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

    @classmethod
    def of_image(cls, error: ImageError) -> Problem:
        """The refusal of an image, with the status that fits its reason."""
        return cls(IMAGE_STATUS[error.reason], error.reason, str(error))

    def response(self) -> JSONResponse:
        """The answer as application/problem+json."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        return JSONResponse(content, self.status, self.headers, media_type="application/problem+json")
