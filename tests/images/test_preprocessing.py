"""From any image that people have to the pixels that the network sees."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images import rgb
from lipsformer.images.open import open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.rgb import to_rgb
from lipsformer.system.errors import InputError
from tests.support.images.files import encode, exif_orientation

# How a camera that was held in each way stores an upright scene.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without any symmetry: red grows to the right, green downwards, blue in one corner."""
    y, x = np.mgrid[0:height, 0:width]
    corner = 200 * ((x < width // 3) & (y < height // 3))
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, corner], -1).astype(np.uint8))


def rgb_of(content: bytes) -> NDArray[np.int64]:
    image = to_rgb(open_image(content))
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("WEBP", {"lossless": True}, 0),
        ("AVIF", {"quality": 95}, 4),
    ],
    ids=["png", "tiff", "tiff-lzw", "jpeg", "webp", "avif"],
)
def test_every_exif_orientation_gives_the_upright_image(
    orientation: int, kind: str, options: dict[str, Any], tolerance: float
) -> None:
    method = STORED[orientation]
    stored = scene() if method is None else scene().transpose(method)
    exif = exif_orientation(orientation)
    found = rgb_of(encode(kind, stored, exif=exif, **options))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - np.asarray(scene())).mean() <= tolerance


def test_orientation_holds_where_exif_cannot_be_rewritten() -> None:
    image = scene().transpose(STORED[6])
    exif = exif_orientation(6)
    opened = open_image(encode("PNG", image, exif=exif))
    opened.getexif()[0x9286] = object()  # stands for a maker's note that Pillow can read but not write
    assert np.array_equal(np.asarray(to_rgb(opened)), np.asarray(scene()))


@pytest.mark.parametrize("block", [b"", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_leaves_the_image_as_it_is(block: bytes) -> None:
    found = rgb_of(encode("PNG", scene(), exif=block) if block else encode("PNG", scene()))
    assert np.array_equal(found, np.asarray(scene()))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    exif = exif_orientation(orientation)
    assert np.array_equal(rgb_of(encode("PNG", scene(), exif=exif)), np.asarray(scene()))


def test_alpha_is_laid_on_white() -> None:
    image = scene().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255]]), 16, 0) * np.ones((1, 48), np.uint8)))
    found = rgb_of(encode("PNG", image))
    assert (found[:16] == 255).all()
    assert np.array_equal(found[16:], np.asarray(scene())[16:])


def test_half_alpha_is_half_white() -> None:
    found = rgb_of(encode("PNG", Image.new("RGBA", (4, 4), (0, 100, 200, 128))))
    assert np.abs(found - [127, 177, 227]).max() <= 1


def test_gray_with_alpha_is_laid_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (10, 0))
    image.putpixel((1, 0), (10, 255))
    assert rgb_of(encode("PNG", image)).tolist() == [[[255] * 3, [10] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_color_of_a_palette_is_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert rgb_of(encode(kind, image, transparency=0)).tolist() == [[[255] * 3, [0, 0, 255]]]


def test_a_palette_with_an_alpha_for_each_color() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    found = rgb_of(encode("PNG", image, transparency=bytes([255, 0])))
    assert found.tolist() == [[[255, 0, 0], [255] * 3]]


def test_a_transparent_gray_value() -> None:
    image = Image.fromarray(np.uint8([[7, 8]]))
    assert rgb_of(encode("PNG", image, transparency=7)).tolist() == [[[255] * 3, [8] * 3]]


def test_one_bit_and_grayscale() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    assert rgb_of(encode("PNG", bits)).tolist() == [[[255] * 3, [0] * 3]]
    assert rgb_of(encode("PNG", Image.fromarray(np.uint8([[3, 77]])))).tolist() == [[[3] * 3, [77] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    image = Image.fromarray(np.uint16([[0, 255, 256, 0x7FFF, 65535]]))
    assert rgb_of(encode(kind, image))[0, :, 0].tolist() == [0, 0, 1, 0x7F, 255]


def test_thirty_two_bits_are_read_as_sixteen() -> None:
    image = Image.fromarray(np.int32([[-5, 256, 65535, 70_000]]))
    assert image.mode == "I"
    assert rgb_of(encode("TIFF", image))[0, :, 0].tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 127, 255]),
        ([0.0, 128.0, 300.0], [0, 128, 255]),
        ([float("nan"), 1.0, -1.0], [0, 255, 0]),
        ([float("inf"), 5.0, float("-inf")], [255, 5, 0]),
    ],
)
def test_floating_point(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.float32([values]))
    assert rgb_of(encode("TIFF", image))[0, :, 0].tolist() == expected


def test_cmyk_is_close_to_the_rgb_original() -> None:
    found = rgb_of(encode("JPEG", scene().convert("CMYK"), quality=95, subsampling=0))
    assert np.abs(found - np.asarray(scene())).mean() < 4


def test_the_first_view_of_an_mpo_and_the_first_frame_of_a_gif() -> None:
    other = Image.new("RGB", (48, 32), "white")
    mpo = encode("MPO", scene(), save_all=True, append_images=[other], quality=95, subsampling=0)
    assert open_image(mpo).format == "MPO"
    assert np.abs(rgb_of(mpo) - np.asarray(scene())).mean() < 3
    gif = encode("GIF", scene(), save_all=True, append_images=[other])
    assert np.abs(rgb_of(gif) - np.asarray(scene())).mean() < 12


def test_what_cannot_be_converted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Image.Image:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(InputError, match="image of mode HSV cannot be converted to RGB"):
        to_rgb(Image.new("HSV", (3, 3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (63, 64), (65, 97), (500, 333), (49, 50)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_any_shape_gives_the_square(size: tuple[int, int], crop_pct: float) -> None:
    pixels = Preprocessing(image_size=32, crop_pct=crop_pct).apply(scene(*size))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_no_width_rounds_the_crop_out_of_the_image() -> None:
    spec = Preprocessing(image_size=32, crop_pct=1.0)
    for width in range(1, 500):
        spec.apply(Image.new("RGB", (width, width + 1)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(96, 96), (97, 61), (301, 200), (64, 640), (31, 47), (1200, 800)])
def test_resizes_then_crops(size: tuple[int, int], interpolation: str) -> None:
    spec = Preprocessing(image_size=56, crop_pct=0.875, interpolation=interpolation)
    image = scene(*size)
    scale = 64 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling[interpolation.upper()])
    left, top = (resized.width - 56) // 2, (resized.height - 56) // 2
    naive = np.asarray(resized.crop((left, top, left + 56, top + 56))).astype(int)
    found = spec.apply(image).astype(int)
    # Smooth but for the corner's edge; half a pixel of shift comes from rounding the resized side.
    assert np.abs(found - naive)[..., :2].mean() < 2.5
    assert np.abs(found - naive).mean() < 4


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = scene(64, 64)
    assert np.array_equal(Preprocessing(image_size=64, crop_pct=1.0).apply(image), np.asarray(image))
    inner = Preprocessing(image_size=56, crop_pct=0.875).apply(image)
    assert np.array_equal(inner, np.asarray(image)[4:60, 4:60])


def test_preprocessing_is_deterministic_and_keeps_the_image(samples: list[Any]) -> None:
    spec = Preprocessing(image_size=64)
    image = open_image(samples[0])
    before = image.tobytes()
    first = spec.apply(image)
    assert np.array_equal(first, spec.apply(image))
    assert np.array_equal(first, spec.apply(open_image(samples[0])))
    assert image.tobytes() == before


def test_survives_json() -> None:
    spec = Preprocessing(image_size=96, crop_pct=0.9, interpolation="bilinear", mean=(0, 0.5, 1), std=(1, 2, 3))
    spec = dataclasses.replace(spec, jpeg_scale="reduced", color_management=True)
    assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be a whole number of at least 1"),
        ({"image_size": 7.5}, "image_size=7.5 must be a whole number"),
        ({"image_size": "64"}, "image_size='64' must be a whole number"),
        ({"crop_pct": 0.0}, "crop_pct=0.0 must be above 0"),
        ({"crop_pct": 1.01}, "crop_pct=1.01 must be above 0 and at most 1"),
        ({"interpolation": "nearest"}, "'nearest' is not one of bilinear, bicubic"),
        ({"mean": [0.5, 0.5]}, "three finite numbers"),
        ({"mean": ["a", "b", "c"]}, "preprocessing:"),
        ({"std": [1.0, 0.0, 1.0]}, "std above 0"),
        ({"std": [1.0, float("nan"), 1.0]}, "three finite numbers"),
        ({"color": "rgb"}, "color"),
        ({"jpeg_scale": "half"}, "jpeg_scale='half' is not one of full, reduced"),
        ({"jpeg_scale": 2}, "jpeg_scale=2 is not one of full, reduced"),
        ({"color_management": "yes"}, "color_management='yes' must be true or false"),
    ],
)
def test_a_bad_specification_is_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="preprocessing") as failure:
        Preprocessing.from_dict({**Preprocessing(image_size=64).to_dict(), **changes})
    assert message in str(failure.value)


def test_a_missing_field_is_reported() -> None:
    with pytest.raises(InputError, match="image_size"):
        Preprocessing.from_dict({})


def test_an_older_file_means_what_it_meant() -> None:
    later = ("pixel_range", "color_management", "jpeg_scale")
    older = {key: value for key, value in Preprocessing(image_size=64).to_dict().items() if key not in later}
    means = Preprocessing(image_size=64, pixel_range=None, color_management=False, jpeg_scale="full")
    assert Preprocessing.from_dict(older) == means
    with pytest.raises(InputError, match="did you mean 'pixel_range'"):
        Preprocessing.from_dict({**older, "pixel_rage": "full"})


def test_a_missing_field_is_not_replaced_by_a_default() -> None:
    with pytest.raises(InputError, match="missing preprocessing field: std"):
        Preprocessing.from_dict({"image_size": 64, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0, 0, 0]})


@pytest.mark.parametrize("mode", ["F", "I", "I;16", "RGBA", "LA", "P"])
def test_an_image_that_is_converted_by_strips_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    image = Image.fromarray(values)
    if mode in ("F", "I", "I;16"):
        kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
        image = Image.fromarray((values[..., 0] * 257.0).astype(kind))
    elif mode == "P":
        image = image.quantize(32)
        image.info["transparency"] = 3
    else:
        image = image.convert(mode)
    assert image.mode == mode
    whole = np.asarray(to_rgb(image))
    assert whole.std() > 10
    monkeypatch.setattr(rgb, "STRIP", 30 * 7)
    assert np.array_equal(np.asarray(to_rgb(image)), whole)


def test_the_largest_value_of_all_strips_tells_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.full((20, 5), 0.5, np.float32)
    values[-1] = 200.0
    monkeypatch.setattr(rgb, "STRIP", 5)
    assert to_rgb(Image.fromarray(values)).getpixel((0, 0)) == (0, 0, 0)


def test_an_image_in_rgb_is_not_copied() -> None:
    image = Image.new("RGB", (4, 4))
    assert to_rgb(image) is image
