"""JPEG XL: the codestream inside its container, and its size, both found before anything is decoded.

The plugin decodes an image as soon as it is opened, so its size has to be known earlier. It is given the codestream
alone. That has everything that decides the pixels: by ISO 18181-1 the codestream's orientation counts and not that of
EXIF data. Compressed metadata, which can be far larger than an image, is never unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["codestream", "pixel_size"]

SIGNATURE = b"\xff\x0a"
SIZE_BITS = (9, 13, 18, 30)
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width / height
MAX_BOXES = 20_000


def codestream(content: bytes) -> bytes:
    """The bare codestream of a JPEG XL file.

    Raises:
        ValueError: if the container is damaged or has none.
    """
    if content.startswith(SIGNATURE):
        return content
    parts = []
    for kind, data in _boxes(content):
        if kind == b"jxlc":
            return bytes(data)
        if kind == b"jxlp":
            parts.append(data[4:])  # after their number; they are in order
    if not parts:
        raise ValueError("no codestream")
    return b"".join(parts)


def pixel_size(stream: bytes) -> tuple[int, int]:
    """Width and height in a codestream's header.

    Raises:
        ValueError: if it has none.
    """
    if not stream.startswith(SIGNATURE):
        raise ValueError("no codestream header")
    bits = _Bits(int.from_bytes(stream[2:16], "little"))
    small = bool(bits.take(1))

    def side() -> int:
        return (bits.take(5) + 1) * 8 if small else bits.take(SIZE_BITS[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return side(), height
    numerator, denominator = RATIOS[ratio]
    return height * numerator // denominator, height


class _Bits:
    """A number that is read from its lowest bit on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def take(self, count: int) -> int:
        taken = self.number & ((1 << count) - 1)
        self.number >>= count
        return taken


def _boxes(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(content), 0
    for _ in range(MAX_BOXES):
        if at + 8 > len(view):
            return
        size, kind, head = int.from_bytes(view[at : at + 4]), bytes(view[at + 4 : at + 8]), 8
        if size == 1:
            size, head = int.from_bytes(view[at + 8 : at + 16]), 16
        size = size or len(view) - at  # 0: to the end of the file
        if size < head or at + size > len(view):
            raise ValueError("a box is cut off")
        yield kind, view[at + head : at + size]
        at += size
    raise ValueError(f"more than {MAX_BOXES} boxes")
