"""Preprocessing: from a Pillow image to the uint8 RGB pixels that the network takes.

Evaluation, parity checks, prediction and serving all call `Preprocessing.apply`. Checkpoints and bundles carry its
parameters. Normalization is not part of it: the network takes uint8, and exported graphs normalize inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.system.errors import InputError, check_fields
from lipsformer.system.renamed_keys import PREPROCESSING_KEYS, current_keys

from .open import DECODER_ERRORS, ORIENTATIONS, ImageError, orientation, too_much_memory

__all__ = ["Preprocessing", "to_rgb"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
STRIP = 1_000_000  # pixels of a large image to convert at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing parameters, as in timm.

    An image is turned upright by its EXIF orientation and converted to RGB. Its shorter side is resized to
    `image_size / crop_pct` pixels with `interpolation`, followed by a square center crop of `image_size` pixels. `mean`
    and `std` (of RGB in 0..1, ImageNet's by default) are applied by the network.

    Raises:
        InputError: if a field is out of range.
    """

    image_size: int
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if type(self.image_size) is not int or self.image_size < 1:
            raise InputError(f"preprocessing: image_size={self.image_size!r} must be a whole number of at least 1")
        if not 0.0 < self.crop_pct <= 1.0:
            raise InputError(f"preprocessing: crop_pct={self.crop_pct!r} must be above 0 and at most 1")
        if self.interpolation not in FILTERS:
            raise InputError(f"preprocessing: interpolation={self.interpolation!r} is not one of {', '.join(FILTERS)}")
        three = len(self.mean) == 3 and len(self.std) == 3
        if not three or not np.isfinite(self.mean + self.std).all() or min(self.std) <= 0:
            raise InputError("preprocessing: mean and std need three finite numbers each, std above 0")

    def apply(self, image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        """Returns pixels (image_size, image_size, 3), uint8 RGB.

        Raises:
            ImageError: if the image cannot be converted to RGB.
        """
        rgb = to_rgb(image)
        shorter = round(self.image_size / self.crop_pct)
        # The crop box is in source coordinates, so that only its pixels are resampled, once. Multiplying first keeps a
        # full side exact; rounded up it would exceed the image.
        side = min(rgb.size) * self.image_size / shorter
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        size = (self.image_size, self.image_size)
        resized = rgb.resize(size, FILTERS[self.interpolation], box=(left, top, left + side, top + side))
        return np.asarray(resized)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: if a field is missing, unknown or invalid.
        """
        try:
            data = current_keys(data, PREPROCESSING_KEYS)
            check_fields(data, [field.name for field in dataclasses.fields(cls)], "preprocessing field")
            return cls(**data)
        except TypeError as error:
            raise InputError(f"preprocessing: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to upright 8-bit RGB; one that is so already is returned itself.

    The EXIF orientation is applied. Transparency is composited on white. 16-bit grayscale keeps its upper 8 bits.
    32-bit integers are read as 16-bit. Floating point is read as 0..1, or as 0..255 where it exceeds 1. CMYK and other
    color spaces are converted without color profiles.

    Raises:
        ImageError: if the pixel mode cannot be converted.
    """
    image = _upright(image)
    try:
        if image.mode.startswith("I") or image.mode == "F":
            return _from_deep_gray(image)
        if image.has_transparency_data:
            return _by_strips(image, _on_white)
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise too_much_memory("image") from None
    except DECODER_ERRORS as error:
        raise ImageError(
            "damaged", f"image of mode {image.mode} cannot be converted to RGB ({error!r}); save it again"
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it rewrites the EXIF block, and fails on camera blocks that it cannot write.
    found = orientation(image)
    return image.transpose(ORIENTATIONS[found]) if found in ORIENTATIONS else image


def _from_deep_gray(image: Image.Image) -> Image.Image:
    scale = 1 / 256
    if image.mode == "F":
        largest = max(float(_numbers(strip).max(initial=0.0)) for _, strip in _strips(image))
        scale = 255.0 if largest <= 1.0 else 1.0

    def gray(strip: Image.Image) -> Image.Image:
        values = _numbers(strip) * scale
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    return _by_strips(image, gray)


def _numbers(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=np.inf)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba)


def _by_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Applies the pixelwise `change` strip by strip, to RGB, without intermediate images of full size."""
    rgb = Image.new("RGB", image.size)
    for box, strip in _strips(image):
        rgb.paste(change(strip).convert("RGB"), box)
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, image.crop(box)
