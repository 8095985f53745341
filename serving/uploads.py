"""Getting the image out of a request: a bounded body, as it is or as the field of a form. No URL is ever fetched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .problems import Problem

__all__ = ["read_upload"]

FORM_OVERHEAD = 16 * 1024  # boundaries, headers and small fields around an image of the largest size
MAX_FORM_PARTS = 8
RAW_TYPES = ("image/", "application/octet-stream")


async def read_upload(request: Request, max_bytes: int) -> tuple[bytes, dict[str, str]]:
    """The encoded image of a request and the text fields of its form; a raw body has none.

    Raises:
        Problem: if the body is too large, comes too slowly, is not an image's or a form's, or holds no image.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, max_bytes)
    if kind.startswith(RAW_TYPES):
        return await _read_body(request, max_bytes, "image"), {}
    raise Problem(
        415, "content_type", f"content type '{kind}': send multipart/form-data with a field 'image', or an image/* body"
    )


async def _from_form(request: Request, max_bytes: int) -> tuple[bytes, dict[str, str]]:
    body = await _read_body(request, max_bytes + FORM_OVERHEAD, "form")
    try:
        form = await _InMemoryParser(
            request.headers, _once(body), max_files=1, max_fields=MAX_FORM_PARTS, max_part_size=FORM_OVERHEAD
        ).parse()
    except MultiPartException as error:
        raise Problem(400, "bad_form", f"the form cannot be read: {error.message}") from None
    image = form.get("image")
    if image is None:
        raise Problem(
            400, "missing_field", f"the form has no field 'image' (it has: {_names(form)}); send the file in it"
        )
    if not isinstance(image, UploadFile):
        raise Problem(400, "not_a_file", "the field 'image' is text; send the file itself, URLs are not fetched")
    content = await image.read()
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    return content, {name: value for name, value in form.items() if isinstance(value, str)}


async def _read_body(request: Request, limit: int, what: str) -> bytes:
    """The body, if it is no longer than `limit`, whatever its headers say."""
    declared = request.headers.get("content-length", "")
    body = bytearray()
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= limit:
            body += chunk
        elif seen > 2 * limit:  # a little more is read and dropped: a client that still sends might miss the answer
            break
    if seen > limit or (declared.isdigit() and int(declared) > limit):
        raise _too_large(limit)
    if not body:
        raise Problem(400, "empty", f"the {what} is empty; send an image")
    return bytes(body)


class _InMemoryParser(MultiPartParser):
    """The body is in memory already, and bounded: its parts need not go to disk."""

    spool_max_size = 0  # SpooledTemporaryFile's word for "never"


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
    await asyncio.sleep(0)


def _names(form: FormData) -> str:
    return ", ".join(sorted(set(form))[:MAX_FORM_PARTS]) or "none"


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_many_bytes", f"more than {limit} bytes; scale the image down")
