"""A writer of lossless JPEGs (process SOF3), as medical devices make them; Pillow only reads them."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

__all__ = ["lossless_jpeg"]

LEFT = 1  # the predictor: the pixel to the left
CATEGORY_BITS = 4  # every category of differences, 0 to 8 bits, has a code of as many bits


def lossless_jpeg(image: Image.Image) -> bytes:
    """An image of mode L or RGB as a lossless JPEG of 8 bits."""
    pixels = np.atleast_3d(np.asarray(image)).astype(np.int64)
    height, width, channels = pixels.shape
    expected = np.empty_like(pixels)
    expected[:, 1:] = pixels[:, :-1]
    expected[1:, 0] = pixels[:-1, 0]
    expected[0, 0] = 128
    names = b"RGB"[:channels]  # these mean RGB, without an Adobe marker
    parts = b"".join(bytes([name, 0x11, 0]) for name in names)
    tables = b"".join(bytes([name, 0]) for name in names)
    return b"".join(
        (
            b"\xff\xd8\xff\xc3" + struct.pack(">HBHHB", 8 + len(parts), 8, height, width, channels) + parts,
            b"\xff\xc4" + struct.pack(">HB", 19 + 9, 0) + bytes([0, 0, 0, 9, *[0] * 12]) + bytes(range(9)),
            b"\xff\xda" + struct.pack(">HB", 6 + len(tables), channels) + tables + bytes([LEFT, 0, 0]),
            _scan((pixels - expected).ravel().tolist()) + b"\xff\xd9",
        )
    )


def _scan(differences: list[int]) -> bytes:
    bits = []
    for value in differences:
        size = abs(value).bit_length()
        bits.append(f"{size:0{CATEGORY_BITS}b}")
        if size:
            bits.append(f"{value if value > 0 else value + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
