"""Color profiles: what an embedded ICC profile makes of an image's colors in sRGB.

A conversion takes 30 ms for each megapixel, twice as long as decoding it (benchmarks/data), so it is meant for the few
pixels that are left of a photo when it is resized. A profile that is broken, of another color space than the image, or
larger than any real one is ignored, as viewers do.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

__all__ = ["kept_mode", "to_srgb"]

MAX_BYTES = 4 * 1024 * 1024  # profiles of printing conditions have up to about 3 MB
MAX_TRANSFORMS = 8  # in memory; the photos of one source have the same few profiles
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile, to the mode of the images that it is for
CLASSES = ("scnr", "mntr", "prtr", "spac")  # profiles of devices and color spaces: input, display, output, conversion
GRAY_MODES = ("L", "LA", "La", "I", "F")
FLAGS = {"L": ImageCms.Flags.GRIDPOINTS(255)}  # the default number misses dark levels by up to 10 of 255
SAME = 1  # levels of 255 by which a profile may differ from sRGB to be taken for it: those of rounding

# What little CMS and its binding raise on a damaged profile, or a Pillow that was built without it.
PROFILE_ERRORS = (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError, AttributeError)


def kept_mode(image: Image.Image) -> str:
    """The mode that the image has to keep until `to_srgb`: that of its profile, if it has one to convert from."""
    mode = "L" if image.mode in GRAY_MODES or image.mode.startswith("I;") else image.mode
    return mode if mode in ("L", "CMYK") and _transform_of(image, mode) is not None else "RGB"


def to_srgb(image: Image.Image) -> Image.Image:
    """Converts an 8-bit image without alpha channel to RGB in sRGB, by its profile if that is usable.

    The rendering intent is perceptual, of which profiles of displays and cameras have the relative colorimetric one.
    """
    transform = _transform_of(image, image.mode)
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply(image)


def _transform_of(image: Image.Image, mode: str) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_BYTES:
        return None
    return _transform(profile, mode)


@functools.lru_cache(maxsize=MAX_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of images of `mode` from `profile` to sRGB; None if it is unusable or would change nothing.

    Threads may share it: little CMS changes nothing in it.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space.strip(), source.profile.device_class.strip()
        if SPACES.get(space) != mode or kind not in CLASSES:
            return None
        transform = ImageCms.ImageCmsTransform(
            source, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=FLAGS.get(mode, ImageCms.Flags.NONE)
        )
        samples = _samples(mode)
        changed = np.asarray(transform.apply(samples), int) - np.asarray(samples.convert("RGB"), int)
    except PROFILE_ERRORS:
        return None
    return transform if np.abs(changed).max() > SAME else None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _samples(mode: str) -> Image.Image:
    """Colors of `mode` that cover its whole range."""
    channels = len(Image.getmodebands(mode) * "x")
    levels = np.linspace(0, 255, {1: 256, 3: 17, 4: 5}[channels]).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * channels), axis=-1).reshape(1, -1, channels)
    return Image.fromarray(grid[..., 0] if channels == 1 else grid, mode)
