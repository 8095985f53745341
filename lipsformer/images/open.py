"""Opening untrusted images: every limit is checked before a pixel is decoded.

Files, uploads and datasets share one function, so that an image is rejected for the same reason over HTTP and on the
command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from lipsformer.system.errors import InputError
from lipsformer.system.extras import pip_command

from . import jxl
from .deep import correct_tiles, lower_bytes
from .formats import EXTENSIONS, NAMES, OPTIONAL, load_plugin, pillow_formats, readable, signature
from .structure_limits import CountedReads, TooComplex, check_structure

__all__ = [
    "EXTENSIONS",
    "ORIENTATIONS",
    "Box",
    "ImageError",
    "ImageLimits",
    "MinSizeFn",
    "check_bytes",
    "decoded_box",
    "open_image",
    "orientation",
    "read_image",
    "too_much_memory",
]

# The transpose that turns an image upright, by EXIF orientation.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
REDUCTIONS = (8, 4, 2)  # factors by which libjpeg can shrink both sides while decoding
REDUCIBLE = ("JPEG", "MPO")
EXACT_SIZE = "lipsformer_exact_size"  # key of `Image.info`: of a reduced JPEG, before its sides are rounded up

Box = tuple[float, float, float, float]  # left, top, right, bottom in fractional pixels
MinSizeFn = Callable[[tuple[int, int]], tuple[float, float]]  # upright (width, height) to the smallest that will do

Reason = Literal[
    "empty",
    "too_many_bytes",
    "not_an_image",
    "too_many_pixels",
    "too_complex",
    "too_much_memory",
    "too_slow",
    "damaged",
]

# What Pillow's decoders raise on damaged input besides OSError: header arithmetic, truncated structures, bad chunks,
# and warnings in a process that turns them into errors.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AssertionError,
                  AttributeError, RuntimeError, struct.error, zlib.error, Warning)  # fmt: skip

OUT_OF_MEMORY = (
    "decoder error -9",
    "Out of memory",
    "Security limit exceeded",
)  # of Pillow's decoders, libavif and libheif

# Pillow warns about odd files without naming them, which is noise among our one-line messages. The filter is for the
# whole process, because `warnings.catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(InputError):
    """A rejected image. `reason` is a stable code for programs, the message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Limits on an image: encoded size in bytes, and width times height in pixels."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000


def open_image(
    source: Path | bytes,
    *,
    limits: ImageLimits | None = None,
    name: str | None = None,
    smallest: MinSizeFn | None = None,
) -> Image.Image:
    """Decodes the first frame of an image file or of an encoded image in memory.

    The size is read from the header and checked before decoding.

    Args:
        source: a path, or the encoded image.
        limits: the largest image to decode.
        name: the image's name in messages; by default the path, or "image".
        smallest: maps the upright (width, height) to the smallest size that the caller can use. A JPEG is then decoded
            at 1/2, 1/4 or 1/8 of its size (sides rounded up), in a fraction of the time; `decoded_box` says where the
            picture lies. Lossless JPEGs are decoded in full.

    Raises:
        ImageError: if it is empty, over a limit, damaged, too complex, or not an image of a known format.
        InputError: if the path cannot be read.
    """
    limits = limits or ImageLimits()
    label = name or (str(source) if isinstance(source, Path) else "image")
    file = _File(content=_read(source, limits, label), limits=limits, label=label)
    image = file.open()
    add_lower_bytes = lower_bytes(image, file.open)
    reduced = smallest is not None and _reduce(image, smallest, file)
    try:
        file.load(image)
    except ImageError as error:
        if not reduced or error.reason != "damaged":
            raise
        image = file.open()  # some kinds of JPEG, such as lossless ones, are decoded in full only
        file.load(image)
    if add_lower_bytes is not None:
        with file.errors("damaged or cut off"):
            add_lower_bytes()
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, a key of `ORIENTATIONS`; 1 if the image is upright or has none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:  # damaged EXIF says nothing about orientation; the pixels are fine
        return 1
    return found if found in ORIENTATIONS else 1


def decoded_box(image: Image.Image) -> Box:
    """Where the picture lies in the pixels that `open_image` decoded, once they are upright.

    It fills them, except for up to a pixel along one or two edges of a reduced JPEG, whose sides are rounded up.
    """
    turned, (width, height) = orientation(image), image.info.get(EXACT_SIZE, image.size)
    across, down = image.width - width, image.height - height  # stored at the right and at the bottom
    if turned in SIDEWAYS:
        width, height, across, down = height, width, down, across
    left, top = across if turned in (2, 3, 6, 7) else 0, down if turned in (3, 4, 7, 8) else 0
    return left, top, left + width, top + height


def _reduce(image: ImageFile.ImageFile, smallest: MinSizeFn, file: _File) -> bool:
    """Prepares a JPEG to be decoded at the smallest size that will do, and returns whether that is not its own."""
    if image.format not in REDUCIBLE:
        file.load(image)  # Pillow finds a PNG's orientation only after its pixels
    sideways = orientation(image) in SIDEWAYS
    width, height = smallest(image.size[::-1] if sideways else image.size)
    if sideways:
        width, height = height, width
    if image.format not in REDUCIBLE:
        return False
    for factor in REDUCTIONS:
        if image.width >= max(width, 1) * factor and image.height >= max(height, 1) * factor:
            drafted = image.draft(None, (image.width // factor, image.height // factor))
            if drafted is None:
                return False
            image.info[EXACT_SIZE] = drafted[1][2:]
            return True
    return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """An encoded image, its limits, and its name in messages."""

    content: bytes
    limits: ImageLimits
    label: str

    def open(self) -> ImageFile.ImageFile:
        """Reads the header and checks the limits."""
        kind = signature(self.content)
        if kind in OPTIONAL and not load_plugin(kind):
            raise ImageError(
                "not_an_image",
                f"{self.label}: {NAMES[kind]} needs the package {OPTIONAL[kind][0]} "
                f"({pip_command('formats')}); install it, or send {readable(without=kind)}",
            )
        with self.errors("damaged image header"):
            check_structure(self.content)
            content = self.content
            if kind == "JXL":
                content = jxl.codestream(content)
                self._check_pixels(jxl.pixel_size(content))  # it is decoded when it is opened
            image = Image.open(CountedReads(content), formats=pillow_formats(kind))
            assert isinstance(image, ImageFile.ImageFile)  # noqa: S101 - for the type checker
            correct_tiles(image)
        self._check_pixels(image.size)
        return image

    def load(self, image: Image.Image) -> None:
        """Decodes the pixels."""
        with self.errors("damaged or cut off"):
            image.load()

    def _check_pixels(self, size: tuple[int, int]) -> None:
        if size[0] * size[1] > self.limits.max_pixels:
            raise _too_many_pixels(self.label, self.limits, size)
        if 0 in size:
            raise ImageError("damaged", f"{self.label}: no pixels; send another image")

    @contextlib.contextmanager
    def errors(self, damage: str) -> Iterator[None]:
        """Turns what Pillow raises into an `ImageError`."""
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError("not_an_image", self._unknown()) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_many_pixels(self.label, self.limits) from None
        except MemoryError:
            raise too_much_memory(self.label) from None
        except TooComplex as error:
            raise ImageError(
                "too_complex", f"{self.label}: {error}, far more than in any photo; save it again"
            ) from None
        except DECODER_ERRORS as error:
            if any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise too_much_memory(self.label) from None
            raise ImageError("damaged", f"{self.label}: {damage} ({_line(error)}); save it again") from None

    def _unknown(self) -> str:
        kind = signature(self.content)
        if kind is None:
            return f"{self.label}: not an image of a known format; send {readable()}"
        return f"{self.label}: damaged, or of a kind of {NAMES[kind]} that cannot be read; save it as {readable(kind)}"


def _read(source: Path | bytes, limits: ImageLimits, label: str) -> bytes:
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size == 0:
            raise ImageError("empty", f"{label}: empty; send {readable()}")
        check_bytes(size, label, limits)
        return source if isinstance(source, bytes) else source.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{label}: no such image file; check the path") from None
    except OSError as error:
        raise InputError(f"{label}: cannot be read ({error.strerror}); check the path and its permissions") from None


def read_image(path: Path) -> bytes:
    """The encoded image in a file, whose size is checked first.

    Raises:
        ImageError: if it is empty, or has more bytes than an image may have.
        InputError: if it cannot be read.
    """
    return _read(path, ImageLimits(), str(path))


def check_bytes(size: int, label: str, limits: ImageLimits | None = None) -> None:
    """Checks the size of an encoded image.

    Raises:
        ImageError: if it has more bytes than `limits` allow.
    """
    limits = limits or ImageLimits()
    if size > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{label}: {size} bytes, limit {limits.max_bytes}; scale it down")


def too_much_memory(label: str) -> ImageError:
    """The error for an image that needs more memory than there is."""
    return ImageError("too_much_memory", f"{label}: needs more memory than there is; scale it down")


def _too_many_pixels(label: str, limits: ImageLimits, size: tuple[int, int] | None = None) -> ImageError:
    found = f"{size[0]} x {size[1]} pixels" if size else "too many pixels"
    return ImageError("too_many_pixels", f"{label}: {found}, limit {limits.max_pixels}; scale it down")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
