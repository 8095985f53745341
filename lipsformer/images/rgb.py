"""From an opened image of any mode to upright 8-bit RGB, in two steps: pixels first, colors once it is small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .color import kept_mode, to_srgb
from .deep import LOW_BYTES, PixelRange, deep_values, full_range, is_deep, scaled
from .open import DECODER_ERRORS, ORIENTATIONS, ImageError, orientation, too_much_memory

__all__ = ["to_8bit", "to_rgb"]

STRIP = 1_000_000  # pixels of a large image to convert at a time
ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # keys of `Image.info` with an orientation


def to_rgb(
    image: Image.Image, *, pixel_range: PixelRange | Literal["full"] | None = None, color_management: bool = False
) -> Image.Image:
    """Converts an image to upright 8-bit RGB; see `to_8bit`. One that is so already is returned itself.

    Raises:
        ImageError: if it cannot be converted.
    """
    image = to_8bit(image, pixel_range=pixel_range, color_management=color_management)
    return to_srgb(image) if color_management else image


def to_8bit(
    image: Image.Image, *, pixel_range: PixelRange | Literal["full"] | None = None, color_management: bool = False
) -> Image.Image:
    """Converts an image to 8 bits, upright and opaque.

    The EXIF orientation is applied. Transparency is composited on white.

    Args:
        pixel_range: the values of deep pixels that become 0 and 255: two numbers, or the "full" range of the file's
            type. None: 16-bit images keep their upper 8 bits, 32-bit integers are read as 16-bit, and floating point as
            0..1, or as 0..255 if an image exceeds 1.
        color_management: False: the result is RGB, converted without color profiles. True: it keeps its color profile,
            and gray or CMYK if that is the profile's, for `to_srgb` to convert when it is resized.

    Raises:
        ImageError: if it cannot be converted.
    """
    try:
        mode = kept_mode(image) if color_management else "RGB"
        result = _to_mode(_upright(image), mode, pixel_range)
    except MemoryError:
        raise too_much_memory("image") from None
    except DECODER_ERRORS as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            "damaged", f"image of mode {image.mode} cannot be converted to RGB ({error!r}); save it again"
        ) from None
    if color_management and "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result


def _to_mode(image: Image.Image, mode: str, pixel_range: PixelRange | Literal["full"] | None) -> Image.Image:
    if pixel_range is not None and image.info.get(LOW_BYTES, image) is None:
        raise ImageError(
            "damaged",
            "only the upper bytes of its separate 16-bit planes can be read; save it with interleaved channels",
        )
    if pixel_range is not None and is_deep(image):
        limits = full_range(image) if pixel_range == "full" else pixel_range
        return _by_strips(image, lambda strip: _scaled(strip, limits), mode)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image, mode)
    if image.has_transparency_data:
        return _by_strips(image, _on_white, mode)
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it rewrites the EXIF block, and fails on camera blocks that it cannot write.
    found = orientation(image)
    if found not in ORIENTATIONS:
        return image
    upright = _with_low_bytes(image, lambda part: part.transpose(ORIENTATIONS[found]))
    for key in ORIENTED:  # so that it is not turned again
        upright.info.pop(key, None)
    return upright


def _with_low_bytes(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Applies `change` to an image, and to its lower bytes if it has some."""
    changed = change(image)
    if image.info.get(LOW_BYTES) is not None:
        changed.info[LOW_BYTES] = change(image.info[LOW_BYTES])
    return changed


def _scaled(strip: Image.Image, limits: PixelRange) -> Image.Image:
    result = Image.fromarray(scaled(deep_values(strip), limits))
    if strip.mode == "RGBA":
        result.putalpha(strip.getchannel("A"))
        return _on_white(result)
    return result


def _from_deep_gray(image: Image.Image, mode: str) -> Image.Image:
    scale = 1 / 256
    if image.mode == "F":
        largest = max(float(_numbers(strip).max(initial=0.0)) for _, strip in _strips(image))
        scale = 255.0 if largest <= 1.0 else 1.0

    def gray(strip: Image.Image) -> Image.Image:
        values = _numbers(strip) * scale
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    return _by_strips(image, gray, mode)


def _numbers(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=np.inf)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba)


def _by_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image], mode: str) -> Image.Image:
    """Applies the pixelwise `change` strip by strip, to `mode`, without intermediate images of full size."""
    result = Image.new(mode, image.size)
    for box, strip in _strips(image):
        result.paste(change(strip).convert(mode), box)
    return result


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, _with_low_bytes(image, lambda part, box=box: part.crop(box))  # type: ignore[misc]
