"""Uploads taken apart in memory: the image and `top_k`, from a form or from a raw body.

Written on the parser's callbacks because ready-made form handling writes files to disk and counts nothing until it
is too late. The body has been bounded before; this adds bounds on parts. It runs in a thread.
"""

from __future__ import annotations

import dataclasses

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .problems import Problem

__all__ = ["FORM_TYPE", "Upload", "is_image_type", "parse_form"]

FORM_TYPE = "multipart/form-data"
MAX_PARTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """An encoded image and the text of `top_k`, if the form had one."""

    image: bytes
    top_k: str | None


@dataclasses.dataclass
class _Part:
    name: str = ""
    is_file: bool = False
    data: bytearray = dataclasses.field(default_factory=bytearray)


def is_image_type(media_type: str) -> bool:
    """Whether a media type may announce an image; what the bytes are is decided by the decoder alone."""
    return media_type.startswith("image/") or media_type == "application/octet-stream"


def parse_form(body: bytes, content_type: str) -> Upload:
    """The upload in a multipart/form-data body: field `image`, and optionally `top_k`.

    Raises:
        Problem: 400 if the form is malformed, has no `image` or several; 422 if `image` is text and not a file.
    """
    parts = _FormReader(content_type).read(body)
    images = [part for part in parts if part.name == "image"]
    if not images:
        raise Problem(400, "missing_field", "the form has no field 'image'; send the photo as a file in that field")
    if len(images) > 1:
        raise Problem(400, "several_images", "the form has several fields 'image'; send one photo for each request")
    if not images[0].is_file:
        raise Problem(
            422, "not_a_file", "field 'image' is text, not a file; addresses are never fetched, send the photo itself"
        )
    top_k = next((part.data.decode("utf-8", "replace") for part in parts if part.name == "top_k"), None)
    return Upload(image=bytes(images[0].data), top_k=top_k)


class _FormReader:
    """Collects the parts of one body."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        if b"boundary" not in options:
            raise Problem(400, "malformed_form", "the content type names no boundary; let the HTTP client set it")
        self.boundary = options[b"boundary"]
        self.parts: list[_Part] = []
        self.header = (bytearray(), bytearray())
        self.complete = False

    def read(self, body: bytes) -> list[_Part]:
        """The parts in their order.

        Raises:
            Problem: 400 if the body is not a complete form of few parts.
        """
        try:
            parser = MultipartParser(
                self.boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self.header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self.header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_part_data": lambda data, start, end: self.parts[-1].data.extend(data[start:end]),
                    "on_end": self._end,
                },
            )
            parser.write(body)
            parser.finalize()
        except FormParserError:
            raise Problem(
                400, "malformed_form", "the body is not a multipart form; let the HTTP client build it"
            ) from None
        if not self.complete:
            raise Problem(400, "malformed_form", "the form is cut off before its closing boundary; send it again")
        return self.parts

    def _begin_part(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Problem(400, "malformed_form", f"the form has more than {MAX_PARTS} fields; send 'image' and 'top_k'")
        self.parts.append(_Part())

    def _end_header(self) -> None:
        name, value = (bytes(piece) for piece in self.header)
        self.header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            _, options = parse_options_header(value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file |= b"filename" in options
        elif name.lower() == b"content-type":  # some clients send bytes with a type but without a file name
            self.parts[-1].is_file |= is_image_type(value.decode("latin-1").lower().strip())

    def _end(self) -> None:
        self.complete = True
