"""Limits on a file's structure, checked before decoding: more parts than any photo has would keep Pillow busy.

Limits on bytes and pixels do not cover this. A file of 20 MiB can hold millions of empty segments, chunks or strips,
each of which costs a step in Python, and a few more bytes in a progressive JPEG are another pass over all its pixels.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np

__all__ = ["CountedReads", "TooComplex", "check_structure"]

# Pillow reads a JPEG of 20 MiB in a few hundred blocks of 64 KiB. A read costs 0.2 to 2.5 microseconds.
MAX_READS = 200_000
MAX_SCANS = 100  # in a JPEG; progressive ones have about ten
MAX_SEGMENTS = 20_000  # in a JPEG that seems to have more scans
MAX_VALUES = 100_000  # in one field of a TIFF, such as the offsets of its strips

# The start of a JPEG segment or the end of the image, not stuffing, fill bytes or restart markers in the pixel data.
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
END_OF_IMAGE, START_OF_SCAN = b"\xd9", b"\xda"

TIFF_BYTES = (1, 2, 6, 7)  # byte types, for text, profiles and the like: read in one piece, however long


class TooComplex(Exception):  # noqa: N818 - `open_image` turns it into an `ImageError`
    """A file exceeds a structure limit. The message names the limit."""


class CountedReads(io.BytesIO):
    """A file in memory that allows `MAX_READS` reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads the next bytes.

        Raises:
            TooComplex: once there were more than `MAX_READS` reads.
        """
        self.left -= 1
        if self.left < 0:
            raise TooComplex(f"more than {MAX_READS} parts")
        return super().read(size)


def check_structure(content: bytes) -> None:
    """Checks what `CountedReads` cannot see: the scans of a JPEG and the field sizes of a TIFF.

    Raises:
        TooComplex: if one is over its limit.
    """
    if content.startswith(b"\xff\xd8"):
        # The marker's bytes may also occur elsewhere, such as in an appended video: count roughly, then parse.
        values = np.frombuffer(content, np.uint8)
        if np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)) > MAX_SCANS:
            _check_scans(content)
    elif content.startswith((b"II", b"MM")):
        _check_fields(content)


def _check_scans(content: bytes) -> None:
    scans, at = 0, 2
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(content, at)
        if found is None or found[1] == END_OF_IMAGE:
            return
        scans += found[1] == START_OF_SCAN
        if scans > MAX_SCANS:
            raise TooComplex(f"more than {MAX_SCANS} scans")
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    raise TooComplex(f"more than {MAX_SEGMENTS} segments")


def _check_fields(content: bytes) -> None:
    """Checks the first directory of a TIFF or BigTIFF, the only one that Pillow reads."""
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:3] == b"+"  # as Pillow distinguishes them
    place, count, field = (order + kind for kind in (("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")))
    try:
        (start,) = struct.unpack_from(place, content, 8 if big else 4)
        (fields,) = struct.unpack_from(count, content, start)
    except struct.error:
        return  # damaged; Pillow will report it
    start += struct.calcsize(count)
    each = struct.calcsize(field)
    directory = memoryview(content)[start:]
    directory = directory[: min(fields, len(directory) // each) * each]
    for tag, kind, values in struct.iter_unpack(field, directory):
        if values > MAX_VALUES and kind not in TIFF_BYTES:
            raise TooComplex(f"more than {MAX_VALUES} values in field {tag}")
