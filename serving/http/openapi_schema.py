"""The parts that the descriptions of our API and of the Open Inference Protocol share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from .problems import REASONS

__all__ = ["HEADERS", "REQUEST_ID", "TEXT", "Schema", "answer", "closed", "refusals"]

Schema = dict[str, Any]

TEXT = {"type": "string"}
REQUEST_ID = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
HEADERS = {
    "X-Request-ID": {"description": "The client's, if it is valid; otherwise a new one.", "required": True,
                     "schema": REQUEST_ID},
    "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
}  # fmt: skip
RETRY_AFTER = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}
ACCEPTED = {"description": "The accepted content encodings, if that of the request is not.", "required": False,
            "schema": {"const": "identity"}}  # fmt: skip
CHALLENGE = {"description": "How to send a key.", "required": True, "schema": {"type": "string"}}


def answer(description: str, schema: Schema, media_type: str = "application/json") -> Schema:
    return {"description": description, "headers": HEADERS, "content": {media_type: {"schema": schema}}}


def closed(**properties: Schema) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def refusals(
    *reasons: str, keys: bool, media_type: str, schema_of: Callable[[int, list[str]], Schema]
) -> dict[str, Schema]:
    """Responses by status. `schema_of` gives the schema of the content for a status and its `reasons`.

    With `keys`, a request without a valid one is refused.
    """
    by_status: dict[int, list[str]] = defaultdict(list)
    for reason in (*reasons, *(["unauthorised"] if keys else [])):
        by_status[REASONS[reason]].append(reason)
    later = {"Retry-After": RETRY_AFTER}
    extra = {401: {"WWW-Authenticate": CHALLENGE}, 415: {"Accept-Encoding": ACCEPTED}, 503: later, 504: later}
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {**HEADERS, **extra.get(status, {})},
            "content": {media_type: {"schema": schema_of(status, names)}},
        }
        for status, names in sorted(by_status.items())
    }
