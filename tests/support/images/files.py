"""Pictures, and encoded image files of them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from lipsformer.images.formats import OPTIONAL, load_plugin

__all__ = ["encode", "exif_orientation", "gradient", "picture", "png", "png_chunk"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Gradients and a disc, in any mode."""
    levels = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", [levels, levels.transpose(Image.Transpose.FLIP_LEFT_RIGHT), levels.rotate(90)])
    ImageDraw.Draw(image).ellipse((4, 4, 20, 20), fill=(250, 120, 10))
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert("L").convert(mode) if mode in ("I", "F", "I;16", "PA") else image.convert(mode)


def gradient(size: tuple[int, int]) -> Image.Image:
    """A smooth RGB picture without symmetry: red grows to the right, green downwards, blue upwards."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, 255 - down], axis=2).astype(np.uint8))


def encode(kind: str, image: Image.Image | tuple[int, int] = (48, 36), **options: Any) -> bytes:
    """`image`, or a picture of that size, as a file of format `kind`."""
    source = picture(size=image) if isinstance(image, tuple) else image
    if kind in OPTIONAL:
        load_plugin(kind)
        if isinstance(options.get("exif"), Image.Exif):
            options["exif"] = options["exif"].tobytes()
    if kind == "MPO":
        options = {"save_all": True, "append_images": [picture()], **options}
    buffer = io.BytesIO()
    source.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_orientation(value: int) -> Image.Exif:
    """EXIF data with this orientation alone."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A PNG chunk with a correct checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, data: bytes = b"", *, depth: int = 8, color: int = 0, interlaced: bool = False,
    before: bytes = b"", after: bytes = b"",
) -> bytes:  # fmt: skip
    """A PNG of `data`, which is already compressed and may be too short, with chunks `before` and `after` it."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    end = png_chunk(b"IEND", b"")
    return PNG_MAGIC + png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", data) + after + end
