"""Deep pixels: images with more than 8 bits per channel, and how their values become 8 bits.

Pillow holds gray images of 16 and 32 bits, but of 16-bit color only the upper bytes. `open_image` therefore decodes
such a file twice, the second time for the lower bytes, and leaves them in `Image.info`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

__all__ = [
    "LOW_BYTES",
    "PixelRange",
    "Values",
    "correct_tiles",
    "deep_values",
    "full_range",
    "is_deep",
    "lower_bytes",
    "scaled",
]

PixelRange = tuple[float, float]
Values = NDArray[np.uint16] | NDArray[np.float64]

# Keys of `Image.info`: the lower bytes of 16-bit color, as an image, or None if Pillow cannot read them; the lowest and
# the highest value that the file's type can hold.
LOW_BYTES, FULL_RANGE = "lipsformer_low_bytes", "lipsformer_full_range"

FULL_RANGES: dict[str, PixelRange] = {"I;12": (0, 4095), "I;16S": (-32768, 32767), "I;16NS": (-32768, 32767),
                                      "I;16BS": (-32768, 32767)}  # fmt: skip
COLOR_16 = re.compile(r"(RGB|RGBA|RGBX|LA|[RGBA]);16([BLN])")
OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# libtiff gives values in the machine's byte order. Pillow 13 knows that of unsigned integers only, and swaps the bytes
# of the others in big-endian files once more.
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
BITS, PLANES = 258, 284  # TIFF tags
SEPARATE = 2


def correct_tiles(image: ImageFile.ImageFile) -> None:
    """Corrects how Pillow is about to read a deep TIFF, where it would give noise. Call it before `Image.load`."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.tile = [tile._replace(args=_with_raw_mode(tile, _correct(image, tile))) for tile in image.tile]
    raw = _raw_modes(image)[:1]
    if raw and raw[0] in FULL_RANGES:
        image.info[FULL_RANGE] = FULL_RANGES[raw[0]]


def lower_bytes(image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> Callable[[], None] | None:
    """How to add the lower bytes of 16-bit color to `image`, to be called when it is loaded; None if it has none.

    `reopen` opens the same file again, as far as `correct_tiles`.
    """
    raws = [COLOR_16.fullmatch(raw) for raw in _raw_modes(image)]
    if not raws or image.mode not in ("RGB", "RGBA") or not all(raws):
        return None
    separate = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PLANES) == SEPARATE
    if separate and image.tile[0].codec_name == "libtiff":  # it ignores the raw mode
        return lambda: image.info.update({LOW_BYTES: None})

    def add() -> None:
        other = reopen()
        other.tile = [tile._replace(args=_with_raw_mode(tile, _low(tile))) for tile in other.tile]
        other.load()
        gray = other.getchannel("G")
        image.info[LOW_BYTES] = Image.merge("RGB", [gray] * 3) if raws[0] and raws[0][1] == "LA" else other

    return add


def is_deep(image: Image.Image) -> bool:
    """Whether the image has values of more than 8 bits per channel."""
    return image.mode.startswith("I") or image.mode == "F" or image.info.get(LOW_BYTES) is not None


def full_range(image: Image.Image) -> PixelRange:
    """The lowest and the highest value of a deep image's type: 0 to 1 for floating point.

    32-bit integers are taken for 16-bit ones, of which they usually are copies.
    """
    found: PixelRange = image.info.get(FULL_RANGE, (0, 1) if image.mode == "F" else (0, 65535))
    return found


def deep_values(image: Image.Image) -> Values:
    """The values of a deep image without its alpha channel: (H, W), or (H, W, 3) in color; not a number becomes NaN."""
    if (low := image.info.get(LOW_BYTES)) is not None:
        values: NDArray[np.uint16] = np.asarray(image)[..., :3].astype(np.uint16) << 8 | np.asarray(low)[..., :3]
        return values
    return np.asarray(image, np.uint16) if image.mode.startswith("I;16") else np.asarray(image, np.float64)


def scaled(values: Values, pixel_range: PixelRange) -> NDArray[np.uint8]:
    """Maps `pixel_range` to 0..255, rounded and clipped; NaN becomes 0."""
    if values.dtype == np.uint16:  # by a table, in a fraction of the time
        return scaled(np.arange(65536.0), pixel_range)[values]
    low, high = pixel_range
    levels = (values - low) * (255 / (high - low)) + 0.5
    return np.clip(np.nan_to_num(levels, nan=0.0, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)


def _correct(image: TiffImagePlugin.TiffImageFile, tile: ImageFile._Tile) -> str:
    raw = _raw_mode(tile)
    if tile.codec_name == "libtiff":
        return NATIVE.get(raw, raw)
    # Pillow 13 reads the separate planes of 16-bit color as if they had 8 bits.
    if image.mode in ("RGB", "RGBA") and len(raw) == 1 and image.tag_v2.get(BITS, (8,))[0] == 16:
        return f"{raw};16{'B' if image.tag_v2.prefix == b'MM' else 'L'}"
    return raw


def _low(tile: ImageFile._Tile) -> str:
    """The raw mode that reads the lower byte of each value where that of `tile` reads the upper one."""
    found = COLOR_16.fullmatch(_raw_mode(tile))
    assert found is not None  # noqa: S101 - `lower_bytes` has checked it
    # There is none for gray with alpha: all four bytes of a pixel are read, the second of which is gray's lower one.
    return "RGBA" if found[1] == "LA" else f"{found[1]};16{OTHER_BYTES[found[2]]}"


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    return [_raw_mode(tile) for tile in image.tile]


def _raw_mode(tile: ImageFile._Tile) -> str:
    raw = tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0]
    return raw if isinstance(raw, str) else ""


def _with_raw_mode(tile: ImageFile._Tile, raw: str) -> str | tuple[object, ...]:
    return raw if isinstance(tile.args, str) or tile.args is None else (raw, *tile.args[1:])
