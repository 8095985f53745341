"""The image formats that are read: their file names and signatures, and the packages that two of them need."""

from __future__ import annotations

import functools
import importlib

from PIL import features

from lipsformer.system.extras import is_installed

__all__ = ["EXTENSIONS", "OPTIONAL", "load_plugin", "load_plugins", "pillow_formats", "readable", "signature"]

# Formats by content, not by file name. JPEG includes MPO, the JPEG with appended views that phones write. PPM is left
# out: Pillow reads the comments of its text form in quadratic time, ten seconds for one MB.
NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF", "AVIF": "AVIF",
         "HEIF": "HEIC", "JXL": "JPEG XL"}  # fmt: skip
OPTIONAL = {"HEIF": ("pillow-heif", "pillow_heif"), "JXL": ("pillow-jxl-plugin", "pillow_jxl")}  # package, module
BUILT_IN = {"WEBP": "webp", "AVIF": "avif"}  # features that Pillow may have been built without

# Files with these names are images, whether or not this process can read them: none vanishes from a folder.
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif",
    ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl",
)  # fmt: skip

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JXL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
)  # fmt: skip
AVIF_BRANDS = (b"avif", b"avis")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
LONGEST_BRANDS = 256  # bytes of a file-type box to look at


def signature(content: bytes) -> str | None:
    """The format that the first bytes of a file announce, a key of `NAMES`; None if it is none of ours."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        size = min(int.from_bytes(content[:4]), LONGEST_BRANDS)
        brands = [content[8:12], *(content[at : at + 4] for at in range(16, size, 4))]
        if any(brand in AVIF_BRANDS for brand in brands):
            return "AVIF"
        return "HEIF" if any(brand in HEIF_BRANDS for brand in brands) else None
    return next((kind for start, kind in SIGNATURES if content.startswith(start)), None)


def pillow_formats(kind: str | None) -> list[str]:
    """Pillow's names of the formats to try for a file with the signature of `kind`."""
    return [name for name in _readable() if name not in OPTIONAL or name == kind]


def readable(without: str | None = None) -> str:
    """The formats that this process can read, in words: "JPEG, PNG or WebP"."""
    *names, last = [NAMES[kind] for kind in _readable() if kind != without]
    return f"{', '.join(names)} or {last}"


@functools.cache
def load_plugin(kind: str) -> bool:
    """Makes Pillow able to read `kind`, a key of `OPTIONAL`, if its package is installed; returns whether it is."""
    try:
        plugin = importlib.import_module(OPTIONAL[kind][1])
    except ImportError:  # not installed, or its libraries do not load
        return False
    # One thread for each image, as for the other formats: workers and decoder processes are the parallelism. The images
    # that a HEIC holds besides its photo are of no use.
    if kind == "HEIF":
        plugin.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    else:
        plugin.JpegXLImagePlugin.DECODE_THREADS = 0
    return True


def load_plugins() -> None:
    """Imports every plugin that is installed, for a process that is about to be confined."""
    for kind in OPTIONAL:
        load_plugin(kind)


@functools.cache
def _readable() -> tuple[str, ...]:
    return tuple(kind for kind in NAMES if _is_readable(kind))


def _is_readable(kind: str) -> bool:
    if kind in OPTIONAL:
        return is_installed(OPTIONAL[kind][1])
    return kind not in BUILT_IN or bool(features.check(BUILT_IN[kind]))
