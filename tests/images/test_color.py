"""Color profiles: images with the same colors in different spaces give the same pixels."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lipsformer.images import color
from lipsformer.images.open import open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.rgb import to_rgb
from tests.support.images.files import encode, exif_orientation, gradient
from tests.support.images.profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    SWAPPED,
    cmyk_profile,
    gray_profile,
    matrix_profile,
    srgb_profile,
    twins,
)

MANAGED = Preprocessing(image_size=32, color_management=True)
SPACES = {"Display P3": DISPLAY_P3, "Adobe RGB": ADOBE_RGB, "swapped": SWAPPED}


def managed(content: bytes) -> np.ndarray:
    return np.asarray(to_rgb(open_image(content), color_management=True)).astype(int)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("PNG", 1), ("TIFF", 1), ("WEBP", 1), ("JPEG", 2), ("AVIF", 2), ("HEIF", 2)]
)
def test_an_image_in_another_space_is_its_srgb_twin(space: str, kind: str, tolerance: int) -> None:
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 98, "subsampling": 0},
        "AVIF": {"quality": 99},
        "HEIF": {"quality": 99, "chroma": 444},
    }
    profile = matrix_profile(SPACES[space])
    srgb, other = twins(profile)
    plain = encode(kind, other, **options.get(kind, {}))
    content = encode(kind, other, icc_profile=profile, **options.get(kind, {}))
    assert np.abs(managed(content) - np.asarray(srgb)).mean() <= tolerance
    assert np.abs(managed(plain) - np.asarray(srgb)).mean() > 1.5 * tolerance  # the test would notice
    small = MANAGED.apply(open_image(content)).astype(int)
    assert np.abs(small - MANAGED.apply(srgb)).mean() <= tolerance


def test_without_color_management_nothing_changes() -> None:
    profile = matrix_profile(SWAPPED)
    _, other = twins(profile)
    opened = open_image(encode("PNG", other, icc_profile=profile))
    assert np.array_equal(np.asarray(to_rgb(opened)), np.asarray(other))
    assert np.array_equal(Preprocessing(image_size=32).apply(opened), Preprocessing(image_size=32).apply(other))


def test_a_profile_of_srgb_costs_nothing() -> None:
    for profile in (srgb_profile(), srgb_profile()[:-1] + b"\1"):
        image = open_image(encode("PNG", gradient((9, 9)), icc_profile=profile))
        assert to_rgb(image, color_management=True) is image


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_has_a_tone_curve(mode: str) -> None:
    gray = Image.linear_gradient("L")
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    content = encode("PNG", image, icc_profile=gray_profile(1.0))
    found = np.asarray(to_rgb(open_image(content), pixel_range="full", color_management=True))[:, 0, 0].astype(int)
    linear = np.arange(256) / 255
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - encoded).max() <= 2


def test_inks_are_converted_by_their_profile() -> None:
    inks = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(4, 2), "CMYK")
    content = encode("TIFF", inks, icc_profile=cmyk_profile())
    found = managed(content)[0]
    assert (np.abs(found - found[:, :1]) <= 2).all()  # neutral
    assert found[0].min() >= 254
    assert found[-1].max() <= 1
    assert (np.diff(found[:, 0]) <= 0).all()
    assert MANAGED.apply(open_image(content)).shape == (32, 32, 3)
    half = found[128, 0]  # of the lightness
    assert abs(half - 119) <= 3
    assert abs(int(np.asarray(to_rgb(open_image(content)))[0, 128, 0]) - half) > 30  # without the profile


def test_colors_are_converted_before_transparency_shows_white() -> None:
    profile = matrix_profile(SWAPPED)
    image = Image.new("RGBA", (2, 1), (250, 0, 0, 255))
    image.putpixel((1, 0), (250, 0, 0, 0))
    found = managed(encode("PNG", image, icc_profile=profile))
    assert np.abs(found - [[[0, 250, 0], [255, 255, 255]]]).max() <= 4


def test_a_palette_and_a_sideways_photo_have_profiles_too() -> None:
    profile = matrix_profile(SWAPPED)
    palette = Image.new("P", (4, 4))
    palette.putpalette([250, 0, 0])
    assert np.abs(managed(encode("PNG", palette, icc_profile=profile)) - [0, 250, 0]).max() <= 4
    photo = Image.new("RGB", (40, 20), (250, 0, 0))
    content = encode("JPEG", photo, icc_profile=profile, exif=exif_orientation(6), quality=98)
    assert managed(content).shape == (40, 20, 3)
    assert np.abs(managed(content) - [0, 250, 0]).max() <= 6


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        bytes(128),
        matrix_profile(SWAPPED)[:200],
        matrix_profile(SWAPPED).replace(b"mntr", b"link"),
        matrix_profile(SWAPPED).replace(b"mntr", b"abst"),
        matrix_profile(SWAPPED).replace(b"acsp", b"none"),
        gray_profile(1.0),
        cmyk_profile(),
        matrix_profile(SWAPPED) + bytes(color.MAX_BYTES),
    ],
    ids=["text", "zeros", "cut", "link", "abstract", "no signature", "gray", "inks", "large"],
)
def test_an_unusable_profile_is_ignored(profile: bytes) -> None:
    picture = gradient((9, 9))
    content = encode("TIFF", picture, icc_profile=profile)
    assert np.array_equal(managed(content), np.asarray(picture))


def test_no_damage_to_a_profile_raises_anything() -> None:
    draw = np.random.default_rng(0)
    original = matrix_profile(DISPLAY_P3)
    results = set()
    for _ in range(300):
        profile = bytearray(original)
        for at in draw.integers(0, len(original), 3):
            profile[at] = draw.integers(256)
        image = Image.new("RGB", (2, 2), (200, 20, 20))
        image.info["icc_profile"] = bytes(profile)
        results.add(to_rgb(image, color_management=True).getpixel((0, 0)))
    assert len(results) > 2


def test_memory_for_conversions_is_bounded() -> None:
    color._transform.cache_clear()
    for gamma in range(20):
        image = Image.new("RGB", (2, 2))
        image.info["icc_profile"] = matrix_profile(ADOBE_RGB, 1.5 + gamma / 10)
        to_rgb(image, color_management=True)
    assert color._transform.cache_info().currsize == color.MAX_TRANSFORMS


def test_threads_share_a_conversion() -> None:
    profile = matrix_profile(DISPLAY_P3)
    images = []
    for seed in range(16):
        image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (200, 200, 3)).astype(np.uint8))
        image.info["icc_profile"] = profile
        images.append(image)

    def convert(image: Image.Image) -> bytes:
        return to_rgb(image, color_management=True).tobytes()

    alone = [convert(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(convert, images * 3)) == alone * 3


def test_the_conversion_of_a_photo_is_that_of_its_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    apply = color.ImageCms.ImageCmsTransform.apply

    def recorded(transform: object, image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return apply(transform, image)  # type: ignore[arg-type]

    profile = matrix_profile(DISPLAY_P3)
    buffer = io.BytesIO()
    gradient((600, 400)).save(buffer, "JPEG", icc_profile=profile)
    MANAGED.apply(open_image(buffer.getvalue()))
    monkeypatch.setattr(color.ImageCms.ImageCmsTransform, "apply", recorded)
    MANAGED.apply(open_image(buffer.getvalue()))
    assert sizes == [(32, 32)]
