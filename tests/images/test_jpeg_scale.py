"""Large JPEGs that are decoded at a fraction of their size: what is decoded, where it lies, how close it comes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images import preprocessing
from lipsformer.images.open import ORIENTATIONS, ImageError, ImageLimits, decoded_box, open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES
from tests.support.images.files import encode, exif_orientation, gradient, picture
from tests.support.images.lossless_jpeg import lossless_jpeg
from tests.support.images.profiles import SWAPPED, matrix_profile

PHOTOS = sorted(SAMPLES.glob("*.jpg"))
TWELVE_MEGAPIXELS = (4000, 3000)


def reduced(size: int, **changes: Any) -> Preprocessing:
    return Preprocessing(image_size=size, jpeg_scale="reduced", **changes)


def both(content: bytes, spec: Preprocessing) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of the reduced and of the full decode."""
    full = dataclasses.replace(spec, jpeg_scale="full")
    return spec.read(content).astype(np.int64), full.read(content).astype(np.int64)


def enlarged(number: int) -> Image.Image:
    """A photo with the noise of a sensor."""
    with Image.open(PHOTOS[number]) as photo:
        smooth = np.asarray(photo.convert("RGB").resize(TWELVE_MEGAPIXELS, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(number).normal(0, 6, (*smooth.shape[:2], 1)).astype(np.float32)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def mosaic(number: int) -> Image.Image:
    """Many photos side by side, each as sharp as it is."""
    sheet, sources = Image.new("RGB", TWELVE_MEGAPIXELS), itertools.cycle(PHOTOS[number:] + PHOTOS[:number])
    for top, left in itertools.product(range(0, sheet.height, 348), range(0, sheet.width, 348)):
        with Image.open(next(sources)) as photo:
            sheet.paste(photo.convert("RGB"), (left, top))
    return sheet


@pytest.mark.parametrize("make", [enlarged, mosaic])
@pytest.mark.parametrize("number", [0, 5])
def test_twelve_megapixels_are_within_four_levels(make: Callable[[int], Image.Image], number: int) -> None:
    content = encode("JPEG", make(number), quality=90)
    for size in (32, 96, 224):
        found, exact = both(content, reduced(size))
        assert 0 < np.abs(found - exact).mean() <= 0.5
        assert np.abs(found - exact).max() <= 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((127, 200), (127, 200)),
        ((128, 200), (64, 100)),
        ((200, 128), (100, 64)),
        ((255, 999), (128, 500)),
        ((256, 999), (64, 250)),
        ((511, 600), (128, 150)),
        ((512, 600), (64, 75)),
        ((4000, 3000), (500, 375)),
    ],
)
def test_twice_the_crop_is_decoded_and_never_less(
    size: tuple[int, int], expected: tuple[int, int], decoded_sizes: list[tuple[int, int]]
) -> None:
    content = encode("JPEG", gradient(size))
    reduced(32, crop_pct=1.0).read(content)
    assert decoded_sizes == [expected]
    decoded_sizes.clear()
    reduced(28, crop_pct=0.875).read(content)  # the crop is a part of the shorter side
    assert decoded_sizes == [expected]


def test_by_default_a_photo_is_decoded_in_full(decoded_sizes: list[tuple[int, int]]) -> None:
    Preprocessing(image_size=32).read(PHOTOS[0])
    reduced(32).read(PHOTOS[0])
    assert decoded_sizes == [(348, 348), (87, 87)]


@pytest.mark.parametrize("orientation", [0, 1, *ORIENTATIONS])
@pytest.mark.parametrize("size", [(133, 333), (333, 133), (259, 157), (640, 400)])
def test_the_crop_lies_where_it_lay(size: tuple[int, int], orientation: int) -> None:
    """A crop that is shifted by a pixel of the whole photo has other levels: 255 / 133 on average."""
    content = encode("JPEG", gradient(size), exif=exif_orientation(orientation), quality=95, subsampling=0)
    for spec in (reduced(8), reduced(8, crop_pct=1.0), reduced(16)):
        found, exact = both(content, spec)
        assert np.abs((found - exact).mean(axis=(0, 1))).max() < 0.5
        assert np.abs(found - exact).max() <= 3


@pytest.mark.parametrize("orientation", [1, *ORIENTATIONS])
def test_the_picture_is_found_in_what_is_decoded(orientation: int) -> None:
    content = encode("JPEG", gradient((133, 250)), exif=exif_orientation(orientation))
    left, top, right, bottom = decoded_box(open_image(content, smallest=lambda size: (size[0] / 4, size[1] / 4)))
    width, height = (250 / 4, 133 / 4) if orientation >= 5 else (133 / 4, 250 / 4)
    assert (right - left, bottom - top) == (width, height)
    assert (left, top) == (
        -width % 1 if orientation in (2, 3, 6, 7) else 0,
        -height % 1 if orientation in (3, 4, 7, 8) else 0,
    )
    whole = decoded_box(open_image(content))
    assert whole == ((0, 0, 250, 133) if orientation >= 5 else (0, 0, 133, 250))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {"progressive": True}),
        ("MPO", "RGB", {}),
    ],
)
def test_every_kind_of_jpeg_is_reduced(
    kind: str, mode: str, options: dict[str, bool], decoded_sizes: list[tuple[int, int]]
) -> None:
    content = encode(kind, gradient((403, 301)).convert(mode), quality=95, **options)
    found, exact = both(content, reduced(32))
    assert decoded_sizes == [(101, 76), (403, 301)]
    assert np.abs(found - exact).mean() < 1
    assert np.abs(found - exact).max() <= 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_lossless_jpeg_is_decoded_in_full(mode: str) -> None:
    found, exact = both(lossless_jpeg(gradient((160, 130)).convert(mode)), reduced(16))
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    found, exact = both(encode(kind, gradient((403, 301)), exif=exif_orientation(6)), reduced(16))
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2), (63, 65)])
def test_photos_smaller_than_twice_the_size_are_not_touched(size: tuple[int, int]) -> None:
    found, exact = both(encode("JPEG", gradient(size)), reduced(32))
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_no_size_rounds_the_crop_out_of_the_image(orientation: int) -> None:
    for width in range(1, 120):
        content = encode("JPEG", Image.new("RGB", (width, width + 3)), exif=exif_orientation(orientation))
        assert reduced(1, crop_pct=1.0).read(content).shape == (1, 1, 3)


def test_limits_are_on_the_size_before_it_is_reduced() -> None:
    content = encode("JPEG", gradient((400, 300)))
    assert reduced(16).read(content, limits=ImageLimits(max_pixels=120_000)).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="400 x 300 pixels, limit 119999"):
        reduced(16).read(content, limits=ImageLimits(max_pixels=119_999))


def test_colors_of_a_reduced_photo_are_managed_too() -> None:
    content = encode("JPEG", gradient((400, 300)), icc_profile=matrix_profile(SWAPPED), quality=95, subsampling=0)
    found, exact = both(content, reduced(16, color_management=True))
    plain = reduced(16).read(content).astype(np.int64)
    assert np.abs(found - exact).max() <= 4
    assert np.abs(found - plain).mean() > 30


def test_what_is_decoded_already_is_the_full_photo(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode("JPEG", picture(size=(400, 300)), exif=exif_orientation(8)))
    spec = Preprocessing(image_size=24)
    assert np.array_equal(spec.apply(Image.open(tmp_path / "photo.jpg")), spec.read(tmp_path / "photo.jpg"))


@pytest.mark.parametrize("name", [None, "a/b.jpg"])
def test_an_image_that_cannot_be_converted_is_named(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Image.Image:
        raise ImageError("damaged", "image of mode RGB cannot be converted")

    monkeypatch.setattr(preprocessing, "to_8bit", refuse)
    with pytest.raises(ImageError) as failure:
        reduced(16).read(PHOTOS[0], name=name)
    assert failure.value.reason == "damaged"
    assert str(failure.value) == ("a/b.jpg: " if name else "") + "image of mode RGB cannot be converted"
