"""Files whose structure alone would keep Pillow busy for long: more parts than a photo has, found before decoding.

Limits on bytes and pixels do not bound this: a file of 20 MiB can hold millions of empty segments, chunks or strips,
each of which costs a step in Python, and a few bytes more in a progressive JPEG are one more pass over all its pixels.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np

__all__ = ["CountedReads", "TooComplex", "check_structure"]

# Pillow reads a JPEG of 20 MiB in some hundred pieces, in blocks of 64 KiB. A step takes it 0.2 to 2.5 microseconds.
MAX_READS = 200_000
MAX_SCANS = 100  # of a JPEG: progressive ones have about ten
MAX_SEGMENTS = 20_000  # of a JPEG that has so many scans
MAX_VALUES = 100_000  # of one field of a TIFF, such as the places of its strips

# What begins a segment in a JPEG, or ends it: not the stuffed, filled or restarted bytes within the pixels' code.
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
END_OF_IMAGE, START_OF_SCAN = b"\xd9", b"\xda"

TIFF_BYTES = (1, 2, 6, 7)  # the types of text, profiles and the like: read in one piece, however long


class TooComplex(Exception):  # noqa: N818 - `images` makes a refusal of it
    """Says what there is too much of."""


class CountedReads(io.BytesIO):
    """A file in memory that may be read in so many pieces, and no more."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes.

        Raises:
            TooComplex: from the first read on that is one too many.
        """
        self.left -= 1
        if self.left < 0:
            raise TooComplex(f"more than {MAX_READS} parts")
        return super().read(size)


def check_structure(content: bytes) -> None:
    """Looks for what is slow before or without reading in many pieces: the scans of a JPEG, the fields of a TIFF.

    Raises:
        TooComplex: if there are too many.
    """
    if content.startswith(b"\xff\xd8"):
        # The bytes of a marker may occur in what is no scan, such as a video that is appended: look quickly, then well.
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
    """Looks at the first directory, the only one that is read, of a TIFF or BigTIFF."""
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:3] == b"+"  # as Pillow tells them apart
    place, count, field = (order + kind for kind in (("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")))
    try:
        (start,) = struct.unpack_from(place, content, 8 if big else 4)
        (fields,) = struct.unpack_from(count, content, start)
    except struct.error:
        return  # damaged, as Pillow will find
    start += struct.calcsize(count)
    each = struct.calcsize(field)
    directory = memoryview(content)[start:]
    directory = directory[: min(fields, len(directory) // each) * each]
    for tag, kind, values in struct.iter_unpack(field, directory):
        if values > MAX_VALUES and kind not in TIFF_BYTES:
            raise TooComplex(f"more than {MAX_VALUES} values in field {tag}")
