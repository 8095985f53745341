"""Multipart parsing in memory: parts are views of the body, found by searching for the boundaries.

Existing parsers write files to disk, check limits too late, and step through the bytes in Python, which a hostile body
turns into seconds of work.
"""

from __future__ import annotations

import dataclasses

from python_multipart.multipart import parse_options_header

from .problems import Problem, shown

__all__ = ["FORM_TYPE", "Part", "Upload", "is_image_type", "one_image", "several_images", "split_form"]

FORM_TYPE = "multipart/form-data"
MAX_OTHER_PARTS = 8  # in addition to the images; we know one, top_k
MAX_PART_HEAD = 8 * 1024
MAX_BOUNDARY = 200  # RFC 2046 allows 70 characters
MOST_NAMES = 8  # of fields, in a message
BUILD = "let the HTTP client build the form"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One field of a form. `is_file` distinguishes an upload from text; `filename` is only returned to the client."""

    name: str
    filename: str | None
    is_file: bool
    data: memoryview


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """Encoded images in order, their file names, and the text of `top_k`, if there is one."""

    images: tuple[memoryview, ...]
    names: tuple[str | None, ...] = (None,)
    top_k: str | None = None


def is_image_type(media_type: str) -> bool:
    """Whether a media type can be that of an image; only the decoder decides what the bytes are."""
    return media_type.startswith("image/") or media_type == "application/octet-stream"


def one_image(body: memoryview, content_type: str) -> Upload:
    """The upload in a form of one image: field `image`, and optionally `top_k`.

    Raises:
        Problem: 400 if the form is malformed, has no `image` or several; 422 if `image` is text and not a file.
    """
    parts = split_form(body, content_type, max_parts=1 + MAX_OTHER_PARTS)
    images = [part for part in parts if part.name == "image"]
    if not images:
        raise _missing("image", parts, "send the image as a file in that field")
    if len(images) > 1:
        raise Problem(
            400,
            "several_images",
            f"the form has {len(images)} fields 'image'; send one here, or all to /classify_batch",
        )
    return _upload(images, parts)


def several_images(body: memoryview, content_type: str, max_images: int) -> Upload:
    """The upload in a form of many images: fields `images` (or `image`), and optionally `top_k`.

    Raises:
        Problem: 400 if the form is malformed or has no image; 413 if it has too many; 422 if one is text.
    """
    parts = split_form(body, content_type, max_parts=max_images + 1 + MAX_OTHER_PARTS)
    images = [part for part in parts if part.name in ("images", "image")]
    if not images:
        raise _missing("images", parts, "send each image as a file in that field")
    if len(images) > max_images:
        raise Problem(
            413, "too_many_images", f"{len(images)} images, limit {max_images}; send them in several requests"
        )
    return _upload(images, parts)


def split_form(body: memoryview, content_type: str, *, max_parts: int) -> list[Part]:
    """The parts of a multipart/form-data body (RFC 7578), in order.

    Raises:
        Problem: 400 if the body is not a complete form of at most `max_parts` parts; 413 if it has more.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        found = "a boundary that is too long" if boundary else "no boundary"
        raise _malformed(f"content type {shown(content_type)} names {found}; let the HTTP client set it")
    whole = body.obj if isinstance(body.obj, bytes | bytearray) and len(body.obj) == len(body) else bytes(body)
    delimiter = b"\r\n--" + boundary
    # The first boundary may start the body, without the line break that precedes all others.
    at = -2 if whole.startswith(delimiter[2:]) else whole.find(delimiter)
    if at == -1:
        raise _malformed(f"no boundary {_text(delimiter[2:])} in a body of {len(body)} bytes; {BUILD}")
    at += len(delimiter)
    parts: list[Part] = []
    while True:
        if whole[at : at + 2] == b"--":
            return parts
        if len(parts) == max_parts:
            raise Problem(413, "too_many_images", f"the form has more than {max_parts} fields; send fewer in a request")
        start = whole.find(b"\r\n\r\n", at, at + MAX_PART_HEAD)
        if start < 0:
            where = f"in the headers of field {len(parts) + 1}"
            raise _malformed(f"the form is cut off {where}, or they are over {MAX_PART_HEAD} bytes; {BUILD}")
        end = whole.find(delimiter, start + 2)
        if end < 0:
            name = _part(bytes(whole[at:start]), body[:0]).name
            raise _malformed(
                f"the form is cut off in field {shown(name)}, after {len(body)} bytes and before its closing boundary; "
                "send it again"
            )
        parts.append(_part(bytes(whole[at:start]), body[start + 4 : max(end, start + 4)]))
        at = end + len(delimiter)


def _part(head: bytes, data: memoryview) -> Part:
    padding, *lines = head.split(b"\r\n")
    if padding.strip(b" \t"):
        raise _malformed(f"a boundary is followed by {_text(padding)} and no line break; {BUILD}")
    name, filename, is_file = "", None, False
    for line in lines:
        field, _, value = line.partition(b":")
        match field.strip().lower():
            case b"content-disposition":
                _, options = parse_options_header(value.strip())
                name = options.get(b"name", b"").decode("utf-8", "replace")
                if b"filename" in options:
                    filename, is_file = options[b"filename"].decode("utf-8", "replace"), True
            case b"content-type":  # some clients send bytes with a type but without a file name
                is_file |= is_image_type(value.decode("latin-1").lower().strip())
    return Part(name=name, filename=filename, is_file=is_file, data=data)


def _upload(images: list[Part], parts: list[Part]) -> Upload:
    for image in images:
        if not image.is_file:
            raise Problem(
                422,
                "not_a_file",
                f"field '{image.name}' is the text {_text(image.data)}, not a file; URLs are never fetched, send the "
                "image itself",
            )
    top_k = next((bytes(part.data[:32]).decode("utf-8", "replace") for part in parts if part.name == "top_k"), None)
    return Upload(
        images=tuple(image.data for image in images), names=tuple(image.filename for image in images), top_k=top_k
    )


def _missing(wanted: str, parts: list[Part], remedy: str) -> Problem:
    names = list(dict.fromkeys(shown(part.name, most=40) for part in parts))
    others = [*names[:MOST_NAMES], *([f"{len(names) - MOST_NAMES} others"] if len(names) > MOST_NAMES else [])]
    found = f"only {', '.join(others)}" if names else "and no others"
    return Problem(400, "missing_field", f"the form has no field '{wanted}', {found}; {remedy}")


def _text(data: bytes | memoryview) -> str:
    """The start of some bytes, for a problem's detail."""
    return shown(bytes(data[:80]).decode("utf-8", "replace"), most=60)


def _malformed(detail: str) -> Problem:
    return Problem(400, "malformed_form", detail)
