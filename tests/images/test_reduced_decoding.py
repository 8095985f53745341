"""JPEGs decoded at a fraction of their size: which size, in which orientation, and how close to the whole image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from lipsformer.images.open import ORIENTATIONS, ImageError, open_image
from lipsformer.images.rgb import to_rgb
from tests.support.images.files import encode, exif_orientation, gradient


@pytest.mark.parametrize(
    ("smallest", "expected"),
    [
        ((200, 100), (200, 100)),
        ((101, 50), (200, 100)),
        ((100, 51), (200, 100)),
        ((100, 50), (100, 50)),
        ((50.5, 20), (100, 50)),
        ((50, 25), (50, 25)),
        ((25, 12.5), (25, 13)),
        ((1, 1), (25, 13)),
        ((0, 0), (25, 13)),
        ((999, 999), (200, 100)),
    ],
)
def test_the_size_is_the_smallest_that_will_do(smallest: tuple[float, float], expected: tuple[int, int]) -> None:
    assert open_image(encode("JPEG", gradient((200, 100))), smallest=lambda _: smallest).size == expected


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (8, 300), (5, 3)])
def test_a_tiny_photo_keeps_a_pixel(size: tuple[int, int]) -> None:
    image = open_image(encode("JPEG", gradient(size)), smallest=lambda _: (0, 0))
    assert min(image.size) >= 1
    assert image.size == (size if min(size) < 2 else image.size)
    image.getpixel((0, 0))


def test_without_a_smallest_size_the_image_is_whole(samples: list[Path]) -> None:
    for path in samples:
        whole = Image.open(path)
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(whole))
        assert np.array_equal(np.asarray(open_image(path, smallest=lambda size: size)), np.asarray(whole))


@pytest.mark.parametrize("orientation", [0, 1, *ORIENTATIONS])
def test_the_upright_size_is_asked_for(orientation: int) -> None:
    asked = []

    def smallest(size: tuple[int, int]) -> tuple[float, float]:
        asked.append(size)
        return size[0] / 2, size[1] / 2

    content = encode("JPEG", gradient((400, 160)), exif=exif_orientation(orientation))
    upright = to_rgb(open_image(content))
    reduced = to_rgb(open_image(content, smallest=smallest))
    assert asked == [upright.size]
    assert reduced.size == (upright.width // 2, upright.height // 2)
    assert abs(np.asarray(upright.resize(reduced.size), int) - np.asarray(reduced)).max() <= 6


@pytest.mark.parametrize("orientation", [1, 6])
def test_each_side_has_its_limit_in_a_sideways_photo(orientation: int) -> None:
    content = encode("JPEG", gradient((400, 160)), exif=exif_orientation(orientation))
    image = to_rgb(open_image(content, smallest=lambda size: (size[0] / 8, size[1] / 2)))
    assert image.size == ((200, 80) if orientation == 1 else (80, 200))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_come_whole_but_ask_too(kind: str) -> None:
    asked = []

    def smallest(size: tuple[int, int]) -> tuple[float, float]:
        asked.append(size)
        return 1, 1

    content = encode(kind, gradient((400, 160)), exif=exif_orientation(6))
    assert to_rgb(open_image(content, smallest=smallest)).size == (160, 400)
    assert asked == [(160, 400)]


def test_a_failing_callback_is_not_a_damaged_image() -> None:
    def smallest(_: tuple[int, int]) -> tuple[float, float]:
        raise ZeroDivisionError

    for kind in ("JPEG", "PNG"):
        with pytest.raises(ZeroDivisionError):
            open_image(encode(kind), smallest=smallest)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_photo_is_damaged_at_any_size(kind: str, samples: list[Path]) -> None:
    buffer = io.BytesIO()
    open_image(samples[0]).save(buffer, kind)
    with pytest.raises(ImageError) as failure:
        open_image(buffer.getvalue()[:9000], smallest=lambda _: (1, 1), name="photo")
    assert failure.value.reason == "damaged"
    assert str(failure.value).startswith("photo: damaged or cut off")


def test_the_decoder_itself_works_on_fewer_pixels(monkeypatch: pytest.MonkeyPatch, samples: list[Path]) -> None:
    decoded = []
    load = ImageFile.ImageFile.load

    def loaded(image: ImageFile.ImageFile) -> object:
        decoded.append((image.size, getattr(image, "decoderconfig", None)))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    open_image(samples[0], smallest=lambda size: (size[0] / 4, size[1] / 4))
    assert decoded == [((87, 87), (4, 0))]


@pytest.mark.parametrize(("factor", "levels"), [(2, 0.7), (4, 1.0)])
def test_a_reduced_photo_is_close_to_the_whole_one(factor: int, levels: float, samples: list[Path]) -> None:
    """Shrunk to half of the reduced size, both differ by less than a gray level."""
    means = []
    for path in samples:
        whole = open_image(path)
        side = int((min(whole.size) - 20) / factor / 2)
        box = (10.0, 20.0, 10.0 + side * factor * 2, 20.0 + side * factor * 2)
        reduced = open_image(path, smallest=lambda size: (size[0] // factor, size[1] // factor))
        small = reduced.resize((side, side), Image.Resampling.BICUBIC, box=tuple(x / factor for x in box))
        exact = whole.resize((side, side), Image.Resampling.BICUBIC, box=box)
        means.append(float(abs(np.asarray(small, int) - np.asarray(exact, int)).mean()))
    assert 0 < np.mean(means) < levels
