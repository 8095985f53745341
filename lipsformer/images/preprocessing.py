"""Preprocessing: from a Pillow image to the uint8 RGB pixels that the network takes.

Evaluation, parity checks, prediction and serving all call `Preprocessing.apply`. Checkpoints and bundles carry its
parameters. Normalization is not part of it: the network takes uint8, and exported graphs normalize inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from lipsformer.system.errors import InputError, check_fields
from lipsformer.system.renamed_keys import PREPROCESSING_KEYS, current_keys

from .color import to_srgb
from .deep import PixelRange
from .rgb import to_8bit

__all__ = ["Preprocessing"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ADDED_LATER = {"pixel_range": None, "color_management": False}  # what models did whose files lack these fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing parameters, as in timm.

    An image is turned upright by its EXIF orientation and converted to RGB. Its shorter side is resized to
    `image_size / crop_pct` pixels with `interpolation`, followed by a square center crop of `image_size` pixels. `mean`
    and `std` (of RGB in 0..1, ImageNet's by default) are applied by the network.

    `pixel_range` says which values of deep pixels (16-bit, floating point) become 0 and 255: two numbers, or the "full"
    range of the file's type. With `color_management`, embedded color profiles are converted to sRGB. The defaults of
    both are for models from before they existed: see `to_8bit`.

    Raises:
        InputError: if a field is out of range.
    """

    image_size: int
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pixel_range: PixelRange | Literal["full"] | None = None
    color_management: bool = False

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
        if self.pixel_range not in (None, "full"):
            object.__setattr__(self, "pixel_range", _checked_range(self.pixel_range))
        if not isinstance(self.color_management, bool):
            raise InputError(f"preprocessing: color_management={self.color_management!r} must be true or false")

    def apply(self, image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        """Returns pixels (image_size, image_size, 3), uint8 RGB.

        Raises:
            ImageError: if the image cannot be converted to RGB.
        """
        return self.crop(self.to_8bit(image))

    def to_8bit(self, image: Image.Image) -> Image.Image:
        """The first step: the image upright, opaque and in 8 bits, but in its own color space.

        Raises:
            ImageError: if it cannot be converted.
        """
        return to_8bit(image, pixel_range=self.pixel_range, color_management=self.color_management)

    def crop(self, image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        """The second step: the center crop of what `to_8bit` returned, as `apply` returns it."""
        shorter = round(self.image_size / self.crop_pct)
        # The crop box is in source coordinates, so that only its pixels are resampled, once. Multiplying first keeps a
        # full side exact; rounded up it would exceed the image.
        side = min(image.size) * self.image_size / shorter
        left, top = (image.width - side) / 2, (image.height - side) / 2
        size = (self.image_size, self.image_size)
        resized = image.resize(size, FILTERS[self.interpolation], box=(left, top, left + side, top + side))
        return np.asarray(self.to_srgb(resized))

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """The last step, for the few pixels of a crop: the colors of what `to_8bit` returned, in sRGB."""
        return to_srgb(image) if self.color_management else image

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
            data = ADDED_LATER | current_keys(data, PREPROCESSING_KEYS)
            check_fields(data, [field.name for field in dataclasses.fields(cls)], "preprocessing field")
            return cls(**data)
        except TypeError as error:
            raise InputError(f"preprocessing: {error}") from None


def _checked_range(value: Any) -> PixelRange:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else ()
    fits = len(numbers) == 2 and all(type(number) in (int, float) and np.isfinite(number) for number in numbers)
    if not fits or not numbers[0] < numbers[1]:
        raise InputError(
            f'preprocessing: pixel_range={value!r} must be "full" or two finite numbers, the lower one first'
        )
    return float(numbers[0]), float(numbers[1])
