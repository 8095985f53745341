"""Mutated uploads: valid images and forms, changed at random from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.support.image_bombs import arithmetic_jpeg, scans, tiff
from tests.support.image_files import encode, picture, png
from tests.support.odd_images import FORMATS

__all__ = ["Upload", "originals", "upload"]

Upload = tuple[str, bytes]  # content type and body

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BOUNDARY = "b0undary"
DISPOSITIONS = (
    'form-data; name="image"; filename="photo.jpg"',
    'form-data; name="image"',
    "form-data; name=image; filename=a",
    'form-data; name="ima\\"ge"; filename="a\\\\"',
    'form-data; name="image"; filename="a"b"c"',
    'form-data; name="image',
    "form-data; name*=utf-8''image; filename*=utf-8''%ff%fe",
    "form-data; name*0=im; name*1=age",
    "form-data",
    "",
    'attachment; filename="image"; name="image"',
    'form-data; name="image"; name="top_k"',
    "form-data" + "; a=b" * 2000,
    'form-data; name="image"; filename="' + "x" * 9000 + '"',
    'form-data; name="image"; filename="a\0b"',
    ";;;==",
    'form-data; name="images"; filename="a"',
    'form-data; name="top_k"',
)


def originals() -> list[bytes]:
    """Small valid images of every format, rare variants among them."""
    small = picture(size=(24, 16))
    frames = [small.rotate(angle) for angle in (30, 60)]
    return [
        *(encode(kind, small) for kind in FORMATS),
        *(encode(kind, small, save_all=True, append_images=frames) for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF")),
        encode("JPEG", small, progressive=True),
        encode("JPEG", small, restart_marker_blocks=1, comment=b"comment", icc_profile=bytes(200)),
        encode("JPEG", small.convert("CMYK")),
        encode("PNG", small.convert("P"), transparency=bytes(256)),
        encode("WEBP", small, lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        *(encode("TIFF", small, compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma")),
        encode("TIFF", picture("1", (24, 16)), compression="group4"),
        encode("TIFF", small, big_tiff=True),
        encode("BMP", small.convert("P")),
        arithmetic_jpeg(),
        scans(64, 64, 3),
        png(8, 8, b"", depth=16, color=6),
        tiff({256: (4, 1, 8), 257: (4, 1, 8)}),
    ]


def upload(draw: random.Random, seeds: list[bytes]) -> Upload:
    """One upload: mostly a mutated image, sometimes in a form, sometimes with a mutated frame."""
    image = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        image = draw.choice(CHANGES)(draw, image, seeds)
    match draw.randrange(4):
        case 0:
            return _form(draw, image)
        case 1:
            return f"multipart/form-data; boundary={BOUNDARY}", _frame([(DISPOSITIONS[0], image)])
        case _:
            return draw.choice(("image/jpeg", "image/x-unknown", "application/octet-stream")), image


def _flip(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(image or b"\0")
    for _number in range(draw.choice((1, 1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _head(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(image or b"\0")
    changed[draw.randrange(min(len(changed), 64))] = draw.randrange(256)
    return bytes(changed)


def _extreme(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    """Sets a field to a number at which arithmetic may overflow."""
    code = draw.choice(("<B", ">H", "<H", ">I", "<I"))
    size = struct.calcsize(code)
    at = draw.randrange(max(1, min(len(image), draw.choice((80, 10**6)))))
    value = draw.choice(EXTREMES) & (1 << 8 * size) - 1
    return image[:at] + struct.pack(code, value) + image[at + size :]


def _cut(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    return image[: draw.randrange(len(image) + 1)]


def _delete(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    start, end = sorted(draw.randrange(len(image) + 1) for _ in range(2))
    return image[:start] + image[end:]


def _repeat(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    start, end = sorted(draw.randrange(len(image) + 1) for _ in range(2))
    return (image[:end] + image[start:end] * draw.choice((1, 1, 3, 30)) + image[end:])[:60_000]


def _splice(draw: random.Random, image: bytes, seeds: list[bytes]) -> bytes:
    other = draw.choice(seeds)
    return image[: draw.randrange(len(image) + 1)] + other[draw.randrange(len(other)) :]


def _insert(draw: random.Random, image: bytes, _: list[bytes]) -> bytes:
    at = draw.randrange(len(image) + 1)
    return image[:at] + draw.randbytes(draw.choice((1, 2, 4, 100))) + image[at:]


CHANGES: tuple[Callable[[random.Random, bytes, list[bytes]], bytes], ...] = (
    _flip, _head, _extreme, _extreme, _cut, _delete, _repeat, _splice, _insert,
)  # fmt: skip


def _frame(parts: list[tuple[str, bytes]], boundary: str = BOUNDARY, *, line: str = "\r\n") -> bytes:
    """A form of `parts`: content disposition and content of each."""
    frame = f"--{boundary}{line}".encode()
    fields = [
        frame + f"Content-Disposition: {disposition}{line}{line}".encode() + content + line.encode()
        for disposition, content in parts
    ]
    return b"".join(fields) + f"--{boundary}--{line}".encode()


def _form(draw: random.Random, image: bytes) -> Upload:
    """A form with a mutated frame."""
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    parts = [(draw.choice(DISPOSITIONS), image) for _ in range(draw.choice((0, 1, 1, 1, 2, 9, 300)))]
    if draw.random() < 0.3:
        parts.append(('form-data; name="top_k"', draw.choice((b"1", b"0", b"x", b"\xff", b"9" * 5000, b""))))
    match draw.randrange(12):
        case 0:
            return kind, _flip(draw, _frame(parts), [])
        case 1:
            return kind, _cut(draw, _frame(parts), [])
        case 2:
            return kind, _frame(parts, line=draw.choice(("\n", "\r", "\n\r", "")))
        case 3:
            return kind, _frame(parts, boundary=draw.choice(("", "other", BOUNDARY + "-", BOUNDARY * 2)))
        case 4:
            names = ("", ";boundary=", ';boundary="', ";boundary=" + "b" * 3000, ";boundary=\xff\xfe", ";;=;boundary")
            return "multipart/form-data" + draw.choice(names), _frame(parts)
        case 5:
            many = b"--" + BOUNDARY.encode() + b"\r\n\r\n\r\n"
            return kind, many * draw.choice((10, 1000, 20_000)) + b"--" + BOUNDARY.encode() + b"--"
        case 6:
            head = b"X-Header: " + b"v" * draw.choice((10, 9000, 60_000)) + b"\r\n"
            return kind, _frame(parts).replace(b"\r\n", b"\r\n" + head * draw.choice((1, 3)), 1)
        case 7:
            inner = _frame(parts)
            return kind, _frame([(DISPOSITIONS[0], inner)], boundary=draw.choice((BOUNDARY, "outer")))
        case 8:
            return kind, (b"\r\n--" + BOUNDARY.encode()[:-1]) * draw.choice((1, 5000))
        case 9:
            return kind + draw.choice((";boundary=other", '; charset="', "; boundary*0=x")), _frame(parts)
        case 10:
            return kind, draw.randbytes(draw.choice((0, 1, 500)))
        case _:
            return kind, _frame(parts)
