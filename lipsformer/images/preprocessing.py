"""Preprocessing: from an encoded image to the uint8 RGB pixels that the network takes.

Training, evaluation, parity checks, prediction and serving all call `Preprocessing.read`. Checkpoints and bundles carry
its parameters. Normalization is not part of it: the network takes uint8, and exported graphs normalize inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from lipsformer.system.errors import InputError, check_fields
from lipsformer.system.renamed_keys import PREPROCESSING_KEYS, current_keys

from .color import to_srgb
from .deep import PixelRange
from .open import Box, ImageError, ImageLimits, decoded_box, open_image
from .rgb import to_8bit

__all__ = ["Pixels", "Preprocessing"]

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
BoxFn = Callable[[tuple[int, int]], Box]  # upright (width, height) to the crop

JPEG_SCALES = ("full", "reduced")
SPARE = 2  # times the final side that a reduced JPEG keeps of the crop's shorter side, at least

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What models did whose files lack these fields.
ADDED_LATER = {"pixel_range": None, "color_management": False, "jpeg_scale": "full"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing parameters, as in timm.

    An image is turned upright by its EXIF orientation and converted to RGB. Its shorter side is resized to
    `image_size / crop_pct` pixels with `interpolation`, followed by a square center crop of `image_size` pixels. `mean`
    and `std` (of RGB in 0..1, ImageNet's by default) are applied by the network.

    `pixel_range` says which values of deep pixels (16-bit, floating point) become 0 and 255: two numbers, or the "full"
    range of the file's type. With `color_management`, embedded color profiles are converted to sRGB. The defaults of
    both are for models from before they existed: see `to_8bit`.

    With the `jpeg_scale` "reduced", JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, as long as the crop keeps twice
    its final size: a large photo takes a fraction of the time. Lossless JPEGs and other formats are decoded in full.

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
    jpeg_scale: Literal["full", "reduced"] = "full"

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
        if self.jpeg_scale not in JPEG_SCALES:
            raise InputError(f"preprocessing: jpeg_scale={self.jpeg_scale!r} is not one of {', '.join(JPEG_SCALES)}")

    def read(
        self,
        source: Path | bytes,
        *,
        limits: ImageLimits | None = None,
        name: str | None = None,
        box: BoxFn | None = None,
        reducing_gap: float | None = None,
    ) -> Pixels:
        """Returns pixels (image_size, image_size, 3), uint8 RGB, of an image file or of an encoded image in memory.

        Args:
            source: a path, or the encoded image.
            limits: the largest image to decode.
            name: the image's name in messages, see `open_image`.
            box: gives the crop once the image's upright size is known; by default the center crop. Called once.
            reducing_gap: of the crop, see Pillow's `Image.resize`.

        Raises:
            ImageError: if the image is rejected, see `open_image`, or cannot be converted to RGB.
            InputError: if the path cannot be read.
        """
        size, chosen = (0, 0), (0.0, 0.0, 0.0, 0.0)

        def smallest(full: tuple[int, int]) -> tuple[float, float]:
            nonlocal size, chosen
            size, chosen = full, (box or self.center_box)(full)
            return self._smallest(full, chosen)

        image = open_image(source, limits=limits, name=name, smallest=smallest)
        left, top, right, bottom = decoded_box(image)
        across, down = (right - left) / size[0], (bottom - top) / size[1]
        decoded = (left + chosen[0] * across, top + chosen[1] * down, left + chosen[2] * across, top + chosen[3] * down)
        try:
            return self._crop(self._to_8bit(image), decoded, reducing_gap)
        except ImageError as error:
            raise error if name is None else ImageError(error.reason, f"{name}: {error}") from None

    def apply(self, image: Image.Image) -> Pixels:
        """Returns the pixels of an image that is decoded already, like `read`.

        Raises:
            ImageError: if the image cannot be converted to RGB.
        """
        converted = self._to_8bit(image)
        return self._crop(converted, self.center_box(converted.size))

    def center_box(self, size: tuple[int, int]) -> Box:
        """The center crop of an image with this upright (width, height)."""
        shorter = round(self.image_size / self.crop_pct)
        # Multiplying first keeps a full side exact; rounded up it would exceed the image.
        side = min(size) * self.image_size / shorter
        left, top = (size[0] - side) / 2, (size[1] - side) / 2
        return left, top, left + side, top + side

    def _smallest(self, full: tuple[int, int], box: Box) -> tuple[float, float]:
        """The smallest size that will do for the crop `box` of an image of the size `full`."""
        side = min(box[2] - box[0], box[3] - box[1])
        spare = max(side / (SPARE * self.image_size), 1.0) if self.jpeg_scale == "reduced" else 1.0
        return full[0] / spare, full[1] / spare

    def _to_8bit(self, image: Image.Image) -> Image.Image:
        return to_8bit(image, pixel_range=self.pixel_range, color_management=self.color_management)

    def _crop(self, image: Image.Image, box: Box, reducing_gap: float | None = None) -> Pixels:
        """Resizes what `_to_8bit` returned: only the pixels in `box`, once. Its few pixels are converted to sRGB."""
        size = (self.image_size, self.image_size)
        crop = image.resize(size, FILTERS[self.interpolation], box, reducing_gap)
        return np.asarray(to_srgb(crop) if self.color_management else crop)

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
