"""Odd images that clients may send, each with its accepted outcomes. All are made here, the same in every run."""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from tests.support.images.bombs import CHEAP, COSTLY, arithmetic_jpeg, tiff
from tests.support.images.deep import deep_png, deep_tiff
from tests.support.images.files import encode, exif_orientation, picture, png, png_chunk
from tests.support.images.lossless_jpeg import lossless_jpeg
from tests.support.images.profiles import SWAPPED, cmyk_profile, gray_profile, matrix_profile

__all__ = ["FILE_NAMES", "FORMATS", "REFUSALS", "Odd", "collection"]

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")
REFUSALS = {  # every reason to reject an image, with its status
    "empty": 400, "too_many_bytes": 413, "too_many_pixels": 413, "too_much_memory": 413, "not_an_image": 415,
    "damaged": 422, "too_slow": 422, "too_complex": 422,
}  # fmt: skip
OF_THE_PROCESS = {"too_slow", "too_complex", "too_much_memory"}  # found only by a decoder process
ODD_OR_REFUSED = ("image", "damaged", "not_an_image", "too_many_pixels", "too_complex")
FOREIGN = ("not_an_image",)

FILE_NAMES = (
    "../../../etc/passwd", "..\\..\\windows\\win.ini", "/dev/zero", "C:\\photo.jpg", "file:///etc/passwd",
    "http://127.0.0.1:1/photo.jpg", "photo.jpg; filename=other.png", 'quoted".jpg', "a" * 4000, " ", ".", "|id",
    "$(id).jpg", "<script>alert(1)</script>.png", "naïve—фото—写真.jpg", "nul\0.jpg", "line\r\nSet-Cookie: a=b",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd:
    """A file; `allowed` holds "image" if it may be classified, and the reasons for which it may be rejected."""

    name: str
    content: bytes = dataclasses.field(repr=False)
    allowed: tuple[str, ...]

    @property
    def costly(self) -> bool:
        """Whether only a process with limits is sure to decide."""
        return bool(OF_THE_PROCESS & set(self.allowed))


def collection() -> list[Odd]:
    """All odd images; the names are unique."""
    groups = (_modes(), _orientations(), _kinds(), _costs(), _damages(), _cuts(), _foreign())
    return [Odd(name=name, content=content, allowed=allowed) for group in groups for name, content, allowed in group]


File = tuple[str, bytes, tuple[str, ...]]
GOOD = ("image",)


def _modes() -> Iterator[File]:
    modes = {
        "PNG": "1 L LA P RGB RGBA I;16", "JPEG": "1 L RGB CMYK YCbCr", "WEBP": "RGB RGBA L P", "GIF": "1 L P RGB RGBA",
        "BMP": "1 L P RGB RGBA", "TIFF": "1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F PA", "AVIF": "RGB RGBA L",
        "HEIF": "RGB RGBA L LA I;16", "JXL": "RGB RGBA L LA I;16 F",
    }  # fmt: skip
    for kind, names in modes.items():
        for mode in names.split():
            yield f"{mode}.{kind.lower()}", encode(kind, picture(mode)), GOOD
    yield "16-bit-rgb.png", png(2, 2, zlib.compress(b"\0" + bytes(12) + b"\0" + bytes(12)), depth=16, color=2), GOOD
    yield "16-bit-gray-alpha.png", png(1, 1, zlib.compress(bytes(5)), depth=16, color=4), GOOD
    yield "2-bit.png", png(8, 2, zlib.compress(b"\0\x1b\xe4" * 2), depth=2), GOOD
    yield "transparent.png", encode("PNG", picture("P"), transparency=bytes(range(256))), GOOD
    yield "color-key.png", encode("PNG", transparency=(250, 120, 10)), GOOD
    levels = np.linspace(0, 60_000, 24 * 32 * 3).reshape(24, 32, 3)
    for order, kind, deflate in itertools.product("<>", ("u2", "i2", "f4"), (False, True)):
        values = levels[..., 0].astype(kind)
        yield f"{kind}-{order}-{deflate}.tiff", deep_tiff(values, order=order, deflate=deflate), GOOD
    yield "color.tiff", deep_tiff(levels.astype("u2")), GOOD
    yield "planes.tiff", deep_tiff(levels.astype("u2"), planes=True), GOOD
    yield "compressed-planes.tiff", deep_tiff(levels.astype("u2"), planes=True, deflate=True), ODD_OR_REFUSED
    yield "color.png", deep_png(levels.astype("u2")), GOOD
    for kind in ("f2", "f8"):
        yield f"{kind}.tiff", deep_tiff(levels[..., 0].astype(kind)), FOREIGN
    yield "without-palette.png", png(2, 2, zlib.compress(bytes(6)), color=3), ODD_OR_REFUSED
    interlaced = zlib.compress(bytes([0, 9, 0, 8, 0, 7, 6, 0, 5, 4, 0, 3, 2, 0, 1, 0, 7, 7, 7, 7]))
    yield "interlaced.png", png(4, 4, interlaced, interlaced=True), ODD_OR_REFUSED


def _orientations() -> Iterator[File]:
    for value in range(10):
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JXL"):
            if kind == "JPEG" or value == 6:
                yield f"orientation-{value}.{kind.lower()}", encode(kind, exif=exif_orientation(value)), GOOD
    head = b"Exif\0\0MM\0*\0\0\0\x08"
    blocks = {
        "no-directory": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "text-orientation": head + b"\0\1" + struct.pack(">HHI4s", 274, 2, 2, b"6\0\0\0") + bytes(4),
        "float-orientation": head + b"\0\1" + struct.pack(">HHIf", 274, 11, 1, float("nan")) + bytes(4),
        "many-orientations": head + b"\0\1" + struct.pack(">HHII", 274, 3, 2**31, 8) + bytes(4),
        "endless": head + b"\0\1" + struct.pack(">HHII", 34665, 4, 1, 8) + struct.pack(">I", 8),
        "cut-off": head + b"\xff\xff",
        "empty": b"Exif\0\0",
        "other": b"Exif\0\0" + bytes(range(256)) * 200,
    }
    for name, block in blocks.items():
        yield f"exif-{name}.jpg", encode("JPEG", exif=block), GOOD
    yield "exif-endless.png", encode("PNG", exif=blocks["endless"]), GOOD
    yield "exif-cut-off.webp", encode("WEBP", exif=blocks["cut-off"]), ODD_OR_REFUSED


def _kinds() -> Iterator[File]:
    frames = [picture("RGB").rotate(angle) for angle in range(0, 360, 6)]
    for kind in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        yield f"frames.{kind.lower()}", encode(kind, save_all=True, append_images=frames), GOOD
    yield "views.mpo", encode("MPO"), GOOD
    yield "progressive.jpg", encode("JPEG", progressive=True), GOOD
    yield "subsampled.jpg", encode("JPEG", subsampling="4:1:1", quality=1), GOOD
    yield "restarts.jpg", encode("JPEG", restart_marker_blocks=1), GOOD
    yield "comment.jpg", encode("JPEG", comment=b"\xff" * 65_000), GOOD
    yield "arithmetic.jpg", arithmetic_jpeg(), ODD_OR_REFUSED
    for mode in ("L", "RGB"):
        yield f"lossless-{mode}.jpg", lossless_jpeg(picture(mode)), GOOD
    yield "compressed-metadata.jxl", encode("JXL", exif=b"II*\0" + bytes(10**7), compress_metadata=True), GOOD
    yield "big.tiff", encode("TIFF", big_tiff=True), GOOD
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        yield f"{compression}.tiff", encode("TIFF", compression=compression), ODD_OR_REFUSED
    yield "group4.tiff", encode("TIFF", picture("1"), compression="group4"), GOOD
    for size in ((1, 1), (1, 50_000), (50_000, 1), (3, 65_500)):
        for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF"):
            if kind not in ("WEBP", "GIF") or max(size) < 16_384:
                yield f"{size[0]}x{size[1]}.{kind.lower()}", encode(kind, Image.new("RGB", size, "teal")), GOOD
    for name, profile in {"nonsense": b"not a profile", "large": bytes(range(256)) * 400, "zeros": bytes(128)}.items():
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            yield f"profile-{name}.{kind.lower()}", encode(kind, icc_profile=profile), GOOD
    profiles = {"rgb": matrix_profile(SWAPPED), "gray": gray_profile(1.8), "inks": cmyk_profile()}
    for name, profile in profiles.items():
        for mode in ("L", "RGB", "CMYK"):
            yield f"profile-{name}-{mode}.tiff", encode("TIFF", picture(mode), icc_profile=profile), GOOD
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 9000, zip=True)
    yield "text.png", encode("PNG", pnginfo=info), GOOD


def _costs() -> Iterator[File]:
    for bombs in (CHEAP, COSTLY):
        for name, (content, allowed) in bombs.items():
            yield f"bomb-{name}", content, allowed


def _damages() -> Iterator[File]:
    whole = encode("PNG")
    data = whole.index(b"IDAT")
    yield "wrong-sum.png", whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:], ("damaged", "image")
    yield "wrong-header-sum.png", whole[:29] + b"\0\0\0\0" + whole[33:], ("damaged", "not_an_image")
    yield "empty-chunks.png", whole[: data - 4] + png_chunk(b"IDAT", b"") * 5000 + whole[data - 4 :], ODD_OR_REFUSED
    yield "huge-chunk.png", whole[: data - 4] + b"\x7f\xff\xff\xff" + whole[data:], ODD_OR_REFUSED
    yield "no-end.png", whole[:-12], ODD_OR_REFUSED
    yield "no-data.png", png(8, 8, b""), ("damaged",)
    yield "no-pixels.png", png(0, 8, b""), ("damaged", "not_an_image")
    yield "unknown-depth.png", png(8, 8, b"", depth=9), ("damaged", "not_an_image")
    yield "directory-of-itself.tiff", tiff({256: (4, 1, 8), 257: (4, 1, 8)}, next_ifd=8), ODD_OR_REFUSED
    yield "no-directory.tiff", b"II*\0\xff\xff\xff\xff", ODD_OR_REFUSED
    yield "many-values.tiff", tiff({256: (4, 2**30, 8), 257: (4, 1, 8), 258: (3, 2**31, 8)}), ODD_OR_REFUSED
    yield "surplus.jpg", encode("JPEG") + bytes(200_000), GOOD
    yield "twice.jpg", encode("JPEG") * 2, GOOD
    for kind in FORMATS:
        draw = random.Random(kind)  # noqa: S311 - a seed, not a secret
        content = encode(kind)
        for number in range(4):
            flipped = bytearray(content)
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            yield f"flip-{number}.{kind.lower()}", bytes(flipped), ODD_OR_REFUSED


def _cuts() -> Iterator[File]:
    for kind in FORMATS:
        content = encode(kind)
        for share in (2, 10, 50, 90, 99):
            yield f"cut-{share}.{kind.lower()}", content[: len(content) * share // 100], ODD_OR_REFUSED
        yield f"magic-only.{kind.lower()}", content[:12], ("not_an_image", "damaged")


def _foreign() -> Iterator[File]:
    photo = encode("JPEG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("photo.jpg", photo)
    yield "polyglot.jpg", photo + archive.getvalue(), GOOD
    yield "polyglot.gif", encode("GIF")[:-1] + b"!\xfe\x09*/alert(1)\0;", GOOD
    yield "polyglot.pdf", b"%PDF-1.7\n1 0 obj <</Length 9>> stream\n" + photo + b"\nendstream", FOREIGN
    yield "archive.zip", archive.getvalue(), FOREIGN
    for kind in ("EPS", "PDF", "ICO", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "DDS", "ICNS", "QOI", "XBM"):
        image = picture("1" if kind == "XBM" else "RGB", (32, 32))
        yield f"foreign.{kind.lower()}", encode(kind, image), FOREIGN
    texts = {
        "empty": b"", "one-byte": b"\xff", "zeros": bytes(5000), "text": b"hello, I am a photo " * 40,
        "html": b"<!doctype html><img src=photo.jpg onerror=alert(1)>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect width='9' height='9'/></svg>",
        "svg-entity": b"<!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg xmlns='http://www.w3.org/2000/svg'>&x;</svg>",
        "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\npop graphic-context",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        "ppm-comments": b"P3\n" + b"#\n" * 100_000 + b"1 1 255 0 0 0", "psd": b"8BPS\0\1" + bytes(60),
        "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(60), "tar": bytes(257) + b"ustar\x0000" + bytes(249),
        "path": b"/etc/passwd", "address": b"http://127.0.0.1:1/photo.jpg",
        "data": b"data:image/png;base64,iVBORw0KGgo=",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(60),
    }  # fmt: skip
    for name, content in texts.items():
        yield f"foreign-{name}", content, FOREIGN if content else ("empty",)
    for name, start in {"jxl": b"\xff\x0a", "jxl-box": b"\0\0\0\x0cJXL \r\n\x87\n"}.items():
        yield f"foreign-{name}", start + bytes(60), ("not_an_image", "damaged")
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(60)
    yield "foreign-heic", heic, ("not_an_image", "damaged")
    yield "foreign-heif", heic.replace(b"ftypheic", b"ftypmif1"), ("not_an_image", "damaged")
