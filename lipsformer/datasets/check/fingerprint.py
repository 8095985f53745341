"""Fingerprints: a small record of each image, from which duplicates and odd images are found without the pixels.

A picture is described by its gray levels in `SIDE` by `SIDE` pixels: their discrete cosine transform below order
`ORDERS`, without the mean, times the frequency, scaled to length 1. Compression, scaling, brightness and contrast
hardly change it. In photos the terms fall with the frequency, so weighted by it they count about equally: different
pictures on the same background, or with the same outline, remain distinct.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from lipsformer.images.deep import deep_values, is_deep
from lipsformer.images.open import ORIENTATIONS, open_image, orientation
from lipsformer.images.rgb import to_rgb

__all__ = ["RECORD", "SCALE", "Photo", "describe", "mirrored", "read_photo", "viewable"]

SIDE = 32  # pixels
DECODED = 2 * SIDE  # a JPEG is decoded at a fraction of its size that has at least these many pixels on each side
ORDERS = 16
SCALE = 254  # of the vector of length 1, kept in int8: a term above 0.5 is very rare, and is cut off
GRAY = 4.0  # levels: below them a color difference is rounding and compression

ROWS, COLUMNS = (
    order.astype(np.intp) for order in np.nonzero(np.add.outer(np.arange(ORDERS), np.arange(ORDERS)) < ORDERS)
)  # the order in y and in x of each term
ROWS, COLUMNS = ROWS[1:], COLUMNS[1:]  # without the mean

# `shape` is the vector described above, `contrast` the root mean square of the gray levels around their mean, `color`
# the mean of Cb and Cr around 0, `colored` whether any color is stronger than `GRAY`.
RECORD = np.dtype(
    [
        ("digest", np.uint64), ("width", np.uint32), ("height", np.uint32), ("contrast", np.float32),
        ("color", np.int8, (2,)), ("colored", np.bool_), ("shape", np.int8, (len(ROWS),)),
    ]
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
    """One image: its thumbnail (SIDE, SIDE, 3), upright, and what its file says. `size` is upright, as (width, height).

    `digest` is a hash of the encoded file. `profile` names the embedded color profile, "none" without one.
    """

    thumbnail: NDArray[np.uint8]
    digest: int
    size: tuple[int, int]
    format: str
    mode: str
    profile: str
    turned: bool


def read_photo(content: bytes, name: str) -> Photo:
    """Reads an encoded image, at a fraction of its size if its format allows.

    Raises:
        ImageError: if it cannot be decoded or converted.
    """
    sizes: list[tuple[int, int]] = []

    def smallest(size: tuple[int, int]) -> tuple[int, int]:
        sizes.append(size)
        return DECODED, DECODED

    image = open_image(content, name=name, smallest=smallest)
    profile = image.info.get("icc_profile")
    return Photo(
        thumbnail=_thumbnail(image, sizes[0]),
        digest=int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()),
        size=sizes[0],
        format=image.format or "unknown",
        mode=image.mode,
        profile=_profile_name(profile) if isinstance(profile, bytes) and profile else "none",
        turned=orientation(image) in ORIENTATIONS,
    )


def describe(photos: Sequence[Photo]) -> NDArray[np.void]:
    """The records (N,) of N photos."""
    pixels = np.stack([photo.thumbnail for photo in photos]).astype(np.float32)
    gray = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    blue, red = (pixels[..., 2] - gray) * 0.564, (pixels[..., 0] - gray) * 0.713
    basis = _basis()
    terms = (basis @ gray @ basis.T)[:, ROWS, COLUMNS] / SIDE
    weighted = terms * np.hypot(ROWS, COLUMNS).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(weighted, axis=1), 1e-6)
    records = np.zeros(len(photos), RECORD)
    records["digest"] = [photo.digest for photo in photos]
    records["width"], records["height"] = np.array([photo.size for photo in photos], np.uint32).T
    records["contrast"] = np.linalg.norm(terms, axis=1)
    records["color"] = np.stack([blue.mean((1, 2)), red.mean((1, 2))], axis=1).round()
    records["colored"] = np.maximum(abs(blue), abs(red)).max((1, 2)) > GRAY
    records["shape"] = (weighted * (SCALE / lengths)[:, None]).round().clip(-127, 127)
    return records


def mirrored(shapes: NDArray[np.int8]) -> NDArray[np.int8]:
    """The `shape` (N, terms) of the same pictures, mirrored left to right."""
    return shapes * np.where(COLUMNS % 2, -1, 1).astype(np.int8)


def viewable(image: Image.Image) -> Image.Image:
    """The image upright in RGB; deep gray levels between its own lowest and highest one.

    Raises:
        ImageError: if it cannot be converted.
    """
    if not is_deep(image):
        return to_rgb(image)
    values = deep_values(image)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return to_rgb(image, pixel_range=(low, high if high > low else low + 1))


@functools.cache
def _basis() -> NDArray[np.float32]:
    """The first `ORDERS` rows of the orthonormal discrete cosine transform (DCT-II)."""
    places = np.arange(SIDE) + 0.5
    rows: NDArray[np.float64] = np.cos(np.pi * np.outer(np.arange(ORDERS), places) / SIDE) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _thumbnail(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    turn, rgb = orientation(image), viewable(image)
    # Reduced decoding rounds the sides up: leave out the fraction of a pixel that is no part of the image. It was on
    # the right and at the bottom before the image was turned upright.
    factor = max(1, round(size[0] / rgb.width))
    width, height = size[0] / factor, size[1] / factor
    left = rgb.width - width if turn in (2, 3, 6, 7) else 0.0
    top = rgb.height - height if turn in (3, 4, 7, 8) else 0.0
    # Bilinear, since a box filter of fractional width takes in some pixels whole and others not at all.
    return np.asarray(
        rgb.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)), np.uint8
    )


@functools.lru_cache(maxsize=64)
def _profile_name(profile: bytes) -> str:
    try:
        found = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "unreadable"
    return " ".join(found.split())[:80] or "unnamed"
