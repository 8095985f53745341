"""Deep pixels: every kind of file gives its values, and a range turns them into 8 bits."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lipsformer.images import rgb
from lipsformer.images.deep import deep_values, full_range, is_deep
from lipsformer.images.open import ImageError, open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.rgb import to_rgb
from tests.support.images.deep import deep_png, deep_tiff
from tests.support.images.files import encode, exif_orientation

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 65536, (13, 11)).astype(np.uint16)
COLOR = RANDOM.integers(0, 65536, (13, 11, 3)).astype(np.uint16)
SIGNED = RANDOM.integers(-32768, 32768, (13, 11)).astype(np.int16)
FLOATS = RANDOM.normal(0, 1000, (13, 11)).astype(np.float32)
STORAGES = [(order, deflate) for order in "<>" for deflate in (False, True)]


def levels(content: bytes, pixel_range: Any) -> np.ndarray:
    return np.asarray(to_rgb(open_image(content), pixel_range=pixel_range)).astype(int)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("values", [GRAY, COLOR], ids=["gray", "color"])
def test_a_png_gives_all_sixteen_bits(values: np.ndarray, interlaced: bool) -> None:
    image = open_image(deep_png(values, interlaced=interlaced))
    assert is_deep(image)
    assert np.array_equal(deep_values(image), values)


@pytest.mark.parametrize(("order", "deflate"), STORAGES)
@pytest.mark.parametrize(
    "values",
    [GRAY, COLOR, SIGNED, SIGNED.astype(np.int32) * 9, FLOATS],
    ids=["gray", "color", "int16", "int32", "float"],
)
def test_a_tiff_gives_its_values(values: np.ndarray, order: str, deflate: bool) -> None:
    image = open_image(deep_tiff(values, order=order, deflate=deflate))
    assert is_deep(image)
    assert np.array_equal(deep_values(image), values)


@pytest.mark.parametrize(("order", "deflate"), STORAGES)
def test_separate_planes(order: str, deflate: bool) -> None:
    content = deep_tiff(COLOR, order=order, deflate=deflate, planes=True)
    assert np.array_equal(np.asarray(to_rgb(open_image(content))), COLOR >> 8)
    if not deflate:
        assert np.array_equal(deep_values(open_image(content)), COLOR)
        return
    with pytest.raises(
        ImageError, match="only the upper bytes of its separate 16-bit planes can be read; save it with"
    ) as failure:
        levels(content, "full")
    assert failure.value.reason == "damaged"


def test_alpha_is_laid_on_white() -> None:
    for channels in (2, 4):
        values = np.zeros((2, 3, channels), np.uint16)
        values[..., :-1] = 2000
        values[:, 1:, -1] = 65535
        found = levels(deep_png(values), (0, 4000))
        assert (found[:, 0] == 255).all()
        assert (found[:, 1:] == 128).all()
    assert (levels(deep_tiff(values), (0, 4000)) == found).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_deep_images_are_turned_too(orientation: int) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 20
    color = np.stack([values, values + 1, values + 2], -1)
    exif = exif_orientation(orientation).tobytes()
    expected = to_rgb(open_image(encode("PNG", Image.fromarray(values.astype(np.uint8)), exif=exif)))
    gray = encode("PNG", Image.fromarray(values), exif=exif)
    assert np.array_equal(levels(gray, (0, 255)), np.asarray(expected))
    image = open_image(deep_png(color))
    image.info["exif"] = exif
    assert np.array_equal(np.asarray(to_rgb(image, pixel_range=(0, 255)))[..., 0], np.asarray(expected)[..., 0])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("write", [deep_png, deep_tiff])
@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3)])
def test_the_range_of_a_depth_gives_the_twin_of_eight_bits(bits: int, write: Any, shape: tuple[int, ...]) -> None:
    values = RANDOM.integers(0, 2**bits, shape).astype(np.uint16)
    twin = np.round(values * (255 / (2**bits - 1)))
    found = levels(write(values), (0, 2**bits - 1))
    assert np.abs(found - (twin if len(shape) == 3 else twin[..., None])).max() <= (0 if bits == 8 else 1)


def test_values_outside_the_range_are_clipped() -> None:
    assert levels(deep_tiff(np.int16([[-2000, -1000, 1000, 3000, 4000]])), (-1000, 3000))[0, :, 0].tolist() == [
        0, 0, 128, 255, 255,
    ]  # fmt: skip
    odd = np.float32([[np.nan, -np.inf, np.inf, 0.25]])
    assert levels(deep_tiff(odd), (0, 0.5))[0, :, 0].tolist() == [0, 0, 255, 128]


def test_neighbors_of_one_set_are_read_alike() -> None:
    """By its own maximum, the darker one would be read as 0..1 and appear brighter."""
    dark, bright = (deep_tiff(np.full((2, 2), value, np.float32)) for value in (0.9, 1.1))
    for pixel_range in ("full", (0.0, 2.0)):
        found = [levels(content, pixel_range).mean() for content in (dark, bright)]
        assert found[0] < found[1]
    assert levels(dark, None).mean() > levels(bright, None).mean() + 200  # as models of before this existed read them


def packed(values: list[int]) -> bytes:
    """A TIFF of one row of 12-bit values, two to three bytes."""
    data = int("".join(f"{value:012b}" for value in values), 2).to_bytes(len(values) * 3 // 2)
    content = deep_tiff(np.frombuffer(data, np.uint8)[None])  # of 8 bits, until its width and depth are changed
    for tag, kind, before, after in ((256, 4, len(data), len(values)), (258, 3, 8, 12)):
        content = content.replace(struct.pack("<HHII", tag, kind, 1, before), struct.pack("<HHII", tag, kind, 1, after))
    return content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (deep_png(np.uint16([[0, 32768, 65535]])), (0, 65535)),
        (deep_png(np.uint16([[[0, 0, 0], [32768] * 3, [65535] * 3]])), (0, 65535)),
        (deep_tiff(np.int16([[-32768, 0, 32767]])), (-32768, 32767)),
        (deep_tiff(np.int16([[-32768, 0, 32767]]), order=">", deflate=True), (-32768, 32767)),
        (deep_tiff(np.float32([[0, 0.5, 1]])), (0, 1)),
        (packed([0, 2048, 4095, 0]), (0, 4095)),
    ],
    ids=["png", "color", "int16", "big-endian", "float", "12 bits"],
)
def test_the_full_range_is_that_of_the_type(content: bytes, expected: tuple[float, float]) -> None:
    assert full_range(open_image(content)) == expected
    assert levels(content, "full")[0, :3, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [GRAY, COLOR, FLOATS], ids=["gray", "color", "float"])
def test_strips_change_nothing(values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    content = deep_tiff(values)
    whole = levels(content, (-500, 40000))
    monkeypatch.setattr(rgb, "STRIP", 11 * 4)
    assert np.array_equal(levels(content, (-500, 40000)), whole)


def test_eight_bits_have_no_range() -> None:
    picture = Image.linear_gradient("L")
    for kind in ("PNG", "TIFF", "JPEG"):
        image = open_image(encode(kind, picture))
        assert not is_deep(image)
        assert np.array_equal(np.asarray(to_rgb(image, pixel_range=(0, 4095))), np.asarray(to_rgb(image)))


def test_the_range_travels_as_json() -> None:
    for pixel_range in ((0, 4095), "full", None):
        spec = Preprocessing(image_size=32, pixel_range=pixel_range)  # type: ignore[arg-type]
        assert Preprocessing.from_dict({**spec.to_dict()}) == spec
    content = deep_png(np.full((40, 40), 2048, np.uint16))
    assert (Preprocessing(image_size=32, pixel_range=(0, 4095)).apply(open_image(content)) == 128).all()


@pytest.mark.parametrize("value", [[1], [3, 3], [4, 1], ["a", 1], "auto", 7, [0, float("inf")], [False, True]])
def test_a_wrong_range_is_refused(value: Any) -> None:
    data = {**Preprocessing(image_size=32).to_dict(), "pixel_range": value}
    with pytest.raises(ValueError, match='must be "full" or two finite numbers, the lower one first'):
        Preprocessing.from_dict(data)
