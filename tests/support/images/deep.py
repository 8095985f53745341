"""Files with more than 8 bits per channel, of every kind that Pillow reads and few programs write."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.images.files import png

__all__ = ["deep_png", "deep_tiff"]

KINDS = {"u": 1, "i": 2, "f": 3}  # TIFF's sample formats
LETTERS = {3: "H", 4: "I"}


def deep_png(values: NDArray[np.uint16], *, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits: values (H, W), or (H, W, C) for gray with alpha, color, or color with alpha."""
    height, width = values.shape[:2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[np.atleast_3d(values).shape[2]]
    passes = [(slice(None), slice(None))]
    if interlaced:
        starts = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
        passes = [(slice(top, None, down), slice(left, None, right)) for top, down, left, right in starts]
    rows = [row for rows, columns in passes for row in values[rows, columns] if row.size]
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    return png(width, height, zlib.compress(data), depth=16, color=color, interlaced=interlaced)


def deep_tiff(values: NDArray[Any], *, order: str = "<", deflate: bool = False, planes: bool = False) -> bytes:
    """A TIFF of the values' own type: (H, W), or (H, W, 3 or 4); `planes` stores each channel separately."""
    height, width = values.shape[:2]
    channels = np.atleast_3d(values).shape[2]
    stored = values.astype(values.dtype.newbyteorder(order))
    parts = [stored[..., index] for index in range(channels)] if planes else [stored]
    strips = [zlib.compress(part.tobytes()) if deflate else part.tobytes() for part in parts]
    fields: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [values.itemsize * 8] * channels),
        259: (3, [8 if deflate else 1]), 262: (3, [1 if channels == 1 else 2]), 273: (4, [0] * len(strips)),
        277: (3, [channels]), 278: (4, [height]), 279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planes else 1]), 339: (3, [KINDS[values.dtype.kind]] * channels),
    }  # fmt: skip
    if channels == 4:
        fields[338] = (3, [2])
    at = 8 + 2 + 12 * len(fields) + 4
    sizes = {tag: len(numbers) * struct.calcsize(LETTERS[kind]) for tag, (kind, numbers) in fields.items()}
    start = at + sum(size for size in sizes.values() if size > 4)
    fields[273] = (4, [start + sum(map(len, strips[:index])) for index in range(len(strips))])
    directory, extra = struct.pack(order + "H", len(fields)), b""
    for tag, (kind, numbers) in sorted(fields.items()):
        data = struct.pack(f"{order}{len(numbers)}{LETTERS[kind]}", *numbers)
        if len(data) > 4:
            data, extra = struct.pack(order + "I", at + len(extra)), extra + data
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + directory + bytes(4) + extra + b"".join(strips)
