"""Image bombs: files that claim, or cost, far more than their bytes. Made by hand, since no encoder writes them."""

from __future__ import annotations

import io
import lzma
import struct
import zlib

from PIL import Image

from tests.support.image_files import png, png_chunk

__all__ = ["CHEAP", "COSTLY", "arithmetic_jpeg", "scans", "tiff"]

ZEROS = 64 * 1024 * 1024  # decompressed size of the small compressed ones, in bytes


def zeros(size: int) -> bytes:
    """That many zeros, as zlib writes them."""
    packer = zlib.compressobj(1)
    block = bytes(1024 * 1024)
    return b"".join([*(packer.compress(block) for _ in range(size // len(block))), packer.flush()])


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"", *, next_ifd: int = 0) -> bytes:
    """A little-endian TIFF: `tags` are (type, count, value), `data` lies at offset 8, the directory behind it."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_ifd)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def gray_tiff(width: int, height: int, compression: int, data: bytes) -> bytes:
    """One strip of 8-bit gray."""
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    return tiff({tag: (4, 1, value) for tag, value in values.items()}, data)


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG with `count` passes over its pixels, of 18 bytes each."""
    blocks = -(-width // 8) * -(-height // 8)
    once = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0)  # all AC coefficients
    runs = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32767)))  # "nothing in the next 32767 blocks"
    again = once + _bits(runs)
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + _bits("0" * blocks)
    return b"".join([_jpeg_head(0xC2, width, height), first, again * count, b"\xff\xd9"])


def arithmetic_jpeg() -> bytes:
    """A JPEG with arithmetic coding, for which any bytes are valid data."""
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0)
    return _jpeg_head(0xC9, 16, 16) + scan + bytes(range(40)) + b"\xff\xd9"


def _jpeg_head(frame: int, width: int, height: int) -> bytes:
    """Magic, one quantization table of ones, tables with one symbol each (DC: 0, AC: a run of 2 ** 14), the frame."""
    tables = b"\xff\xdb\0\x43\0" + b"\x01" * 64
    for kind, symbol in ((0x00, 0), (0x10, 0xE0)):
        tables += b"\xff\xc4" + struct.pack(">HB", 20, kind) + b"\x01" + bytes(15) + bytes([symbol])
    return (
        b"\xff\xd8" + tables + b"\xff" + bytes([frame]) + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0"
    )


def _bits(bits: str) -> bytes:
    """Bits as the bytes of a scan: padded with ones, with zeros stuffed after 0xFF."""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def gif_screen(width: int, height: int) -> bytes:
    """A GIF whose only frame has hardly any data."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0" + size + b"\0\2\2D\1\0;"


def gif_run(width: int, height: int) -> bytes:
    """A GIF of one color: LZW codes cover more and more, about a thousand pixels per byte at the end."""
    buffer = io.BytesIO()
    Image.new("P", (width, height)).save(buffer, "GIF")
    return buffer.getvalue()


def bmp(width: int, height: int) -> bytes:
    """The header alone."""
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 200, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of this size (at most 16384 a side) without data."""
    data = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(10)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def avif(width: int, height: int) -> bytes:
    """A valid AVIF but for the size in its header."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "AVIF")
    true = b"ispe" + bytes(4) + struct.pack(">II", 40, 30)
    return buffer.getvalue().replace(true, true[:8] + struct.pack(">II", width, height))


def jpeg_header(width: int, height: int) -> bytes:
    """The header and one byte of data."""
    return _jpeg_head(0xC0, width, height) + b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + b"\0"


SWELLING = zeros(ZEROS)
TEXT = b"Comment\0\0" + SWELLING
TINY = zlib.compress(bytes(72))  # the pixels of 8 x 8

# Name: (content, the accepted reasons). Rejected by their header, or cheap to find out.
PIXELS = ("too_many_pixels",)
CHEAP: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "pixels.png": (png(50_000, 50_000, SWELLING, depth=1), PIXELS),
    "beyond-32-bits.png": (png(2**31 - 1, 2**31 - 1, b""), PIXELS),
    "pixels.gif": (gif_screen(65_535, 65_535), PIXELS),
    "small-screen.gif": (gif_screen(65_535, 65_535).replace(b"\xff\xff" * 2, b"\1\0\1\0", 1), PIXELS),
    "pixels.bmp": (bmp(60_000, 60_000), PIXELS),
    "negative.bmp": (bmp(-60_000, -60_000), ("too_many_pixels", "damaged")),
    "pixels.tiff": (gray_tiff(2**31 - 1, 2**31 - 1, 1, b"x"), PIXELS),
    "pixels.webp": (webp(16_384, 16_384), PIXELS),
    "pixels.jpg": (jpeg_header(65_500, 65_500), PIXELS),
    "pixels.avif": (avif(30_000, 30_000), ("too_many_pixels", "damaged", "not_an_image")),
}
# They may be images, rejected, or too much for a decoder's memory or time; the service must survive each.
EITHER = ("image", "damaged", "too_slow", "too_complex", "too_much_memory")
COSTLY: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "text.png": (png(8, 8, TINY, before=png_chunk(b"zTXt", TEXT)), EITHER),
    "late-text.png": (png(8, 8, TINY, after=png_chunk(b"zTXt", TEXT)), EITHER),
    "many-texts.png": (png(8, 8, TINY, before=png_chunk(b"zTXt", b"c\0\0" + zeros(1 << 20)) * 90),
                       EITHER),
    "itext.png": (png(8, 8, TINY, before=png_chunk(b"iTXt", b"c\0\1\0\0\0" + SWELLING)), EITHER),
    "profile.png": (png(8, 8, TINY, before=png_chunk(b"iCCP", TEXT)), EITHER),
    "surplus.png": (png(100, 100, SWELLING), EITHER),
    "run.gif": (gif_run(1900, 2000), EITHER),
    "deflate.tiff": (gray_tiff(1900, 2000, 8, SWELLING), EITHER),
    "lzma.tiff": (gray_tiff(1900, 2000, 34925, lzma.compress(bytes(ZEROS), preset=0)), EITHER),
    "scans.jpg": (scans(1900, 2000, 20_000), EITHER),
}  # fmt: skip
