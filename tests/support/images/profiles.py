"""ICC profiles, and pictures whose colors are the same in two of them."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from tests.support.images.files import gradient

__all__ = [
    "ADOBE_RGB",
    "DISPLAY_P3",
    "SWAPPED",
    "cmyk_profile",
    "gray_profile",
    "matrix_profile",
    "srgb_profile",
    "twins",
]

XYZ = tuple[float, float, float]

# Red, green and blue in the connection space (D50), as these profiles have them.
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
SWAPPED = (SRGB[1], SRGB[0], SRGB[2])  # no real space: red and green are exchanged
WHITE = (0.9642, 1.0, 0.8249)


def srgb_profile() -> bytes:
    """sRGB as little CMS writes it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def matrix_profile(primaries: tuple[XYZ, XYZ, XYZ], gamma: float = 2.2) -> bytes:
    """A display's profile."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, primaries), strict=True))
    return _profile(b"mntr", b"RGB ", b"XYZ ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def gray_profile(gamma: float) -> bytes:
    """A profile of gray images."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A printer's profile whose paper is white and whose inks are grays: a color is as light as the inks are few."""
    grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = np.zeros((16, 3), np.uint8)
    lab[:, 0] = np.round(255 * np.clip(1 - grid.sum(1) / 4, 0, 1))
    lab[:, 1:] = 128
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(round(65536 * x) for x in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab.tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def twins(profile: bytes, size: tuple[int, int] = (96, 64)) -> tuple[Image.Image, Image.Image]:
    """A smooth picture in sRGB, and the same colors in the space of `profile`; all are inside both."""
    picture = gradient(size).point(lambda level: 60 + level // 2)
    other = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), other)
    assert converted is not None
    converted.info.clear()
    return picture, converted


def _xyz(value: XYZ) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * x) for x in value))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"wtpt": _xyz(WHITE), **tags}
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        directory += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", start + len(body), b"lcms", 0x02100000, kind, space, connection,
                       bytes(12), b"acsp")  # fmt: skip
    return head.ljust(68, b"\0") + _xyz(WHITE)[8:] + bytes(48) + directory + body
