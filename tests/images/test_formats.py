"""Formats: which files are images, what a refusal says, and the two formats that need a package."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer.images import formats
from lipsformer.images.formats import EXTENSIONS, NAMES, OPTIONAL, readable, signature
from lipsformer.images.jxl import codestream, pixel_size
from lipsformer.images.open import ImageError, ImageLimits, open_image
from lipsformer.images.rgb import to_rgb
from tests.support.images.bombs import arithmetic_jpeg
from tests.support.images.deep import deep_tiff
from tests.support.images.files import encode, exif_orientation, gradient
from tests.support.images.lossless_jpeg import lossless_jpeg

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if pillow-heif and pillow-jxl-plugin were not installed."""
    for _, module in OPTIONAL.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(formats, "_is_readable", lambda kind: kind not in OPTIONAL)
    formats._readable.cache_clear()
    formats.load_plugin.cache_clear()
    yield
    monkeypatch.undo()
    formats._readable.cache_clear()
    formats.load_plugin.cache_clear()


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as failure:
        to_rgb(open_image(content, name="photo"))
    assert len(str(failure.value).splitlines()) == 1
    return failure.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_announces_the_format(kind: str) -> None:
    assert signature(encode(kind)) == kind
    for short in range(4):
        assert signature(encode(kind)[:short]) in (None, kind)


def test_the_names_that_pillow_knows_are_images() -> None:
    for kind in OPTIONAL:
        formats.load_plugin(kind)
    Image.init()
    known = {ending for ending, kind in Image.EXTENSION.items() if kind in {*NAMES, "MPO", "DIB"}}
    assert known <= set(EXTENSIONS)
    assert {".jfif", ".jpe", ".pjpeg", ".heic", ".hif", ".jxl", ".mpo", ".dib"} <= set(EXTENSIONS)
    assert all(ending == ending.lower() for ending in EXTENSIONS)


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("kind", OPTIONAL)
def test_a_format_without_its_package_names_the_extra(kind: str) -> None:
    error = refusal(CONTENT[kind])
    package = OPTIONAL[kind][0]
    assert error.reason == "not_an_image"
    assert f"{NAMES[kind]} needs the package {package} (pip install 'lipsformer[formats]')" in str(error)
    assert "or send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF" in str(error)
    assert "send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF" in str(refusal(b"text"))


CONTENT = {kind: encode(kind) for kind in KINDS}


def test_the_refusal_lists_what_this_process_reads() -> None:
    assert str(refusal(b"text")).endswith("send JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC or JPEG XL")
    assert readable().endswith("HEIC or JPEG XL")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (deep_tiff(np.zeros((2, 2), np.float64)), "TIFF"),
        (deep_tiff(np.zeros((2, 2), np.float16)), "TIFF"),
        (deep_tiff(np.zeros((2, 2, 3), np.float32), order=">"), "TIFF"),
        (CONTENT["JPEG"][:20], "JPEG"),
        (CONTENT["GIF"][:9], "GIF"),
        (CONTENT["WEBP"][:14], "WEBP"),
        (CONTENT["HEIF"][:60], "HEIF"),
    ],
)
def test_no_format_is_suggested_to_a_file_that_has_it(content: bytes, kind: str) -> None:
    message = str(refusal(content))
    assert f"of a kind of {NAMES[kind]} that cannot be read; save it as " in message
    assert NAMES[kind] not in message.partition("save it as ")[2].split(" or ")[0].split(", ")
    assert message.count(NAMES[kind]) == 1 + message.count("JPEG XL") * (kind == "JPEG")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(64, 48), (401, 163), (9, 200)])
def test_a_lossless_jpeg_is_decoded_in_full(mode: str, size: tuple[int, int]) -> None:
    picture = gradient(size).convert(mode)
    asked = []

    def smallest(full: tuple[int, int]) -> tuple[float, float]:
        asked.append(full)
        return 1, 1

    content = lossless_jpeg(picture)
    for image in (open_image(content), open_image(content, smallest=smallest)):
        assert np.array_equal(np.asarray(image), np.asarray(picture))
    assert asked == [size]


@pytest.mark.parametrize(
    "content",
    [
        arithmetic_jpeg(),
        encode("JPEG", (90, 70), progressive=True),
        encode("JPEG", gradient((90, 70)).convert("CMYK")),
        encode("JPEG", (90, 70), restart_marker_blocks=1),
        encode("MPO", (90, 70)),
        lossless_jpeg(gradient((90, 70)))[:2000],
        encode("JPEG", (90, 70))[:-100],
        lossless_jpeg(gradient((90, 70))).replace(b"\xff\xc3\0\x11\x08", b"\xff\xc3\0\x11\x0c"),
    ],
    ids=["arithmetic", "progressive", "cmyk", "restarts", "mpo", "cut lossless", "cut", "12 bits"],
)
def test_training_and_prediction_agree_on_what_is_damaged(content: bytes) -> None:
    outcomes = []
    for smallest in (None, lambda _: (1, 1)):
        try:
            open_image(content, smallest=smallest)
            outcomes.append("image")
        except ImageError as error:
            outcomes.append(error.reason)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("kind", OPTIONAL)
def test_the_packages_formats_give_the_picture(kind: str, mode: str) -> None:
    picture = gradient((120, 80)).convert(mode)
    found = np.asarray(to_rgb(open_image(encode(kind, picture, quality=95)))).astype(int)
    assert np.abs(found - np.asarray(picture.convert("RGB"))).mean() < 3
    assert np.asarray(to_rgb(open_image(encode(kind, Image.new("RGBA", (64, 64)))))).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(orientation: int) -> None:
    """The file says it twice, in EXIF data and as a property that libheif applies."""
    exif = exif_orientation(orientation)
    upright = np.asarray(to_rgb(open_image(encode("PNG", gradient((120, 80)), exif=exif)))).astype(int)
    found = np.asarray(to_rgb(open_image(encode("HEIF", gradient((120, 80)), exif=exif, quality=95)))).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 3
    asked = []
    open_image(encode("HEIF", gradient((120, 80)), exif=exif), smallest=lambda size: asked.append(size) or size)
    assert asked == [upright.shape[1::-1]]


def test_ten_bits_and_several_images() -> None:
    deep = Image.fromarray(np.full((32, 32), 40_000, np.uint16))
    found = to_rgb(open_image(encode("HEIF", deep)), pixel_range="full").getpixel((5, 5))
    assert abs(found[0] - 156) <= 1
    frames = encode("HEIF", gradient((64, 64)), save_all=True, append_images=[Image.new("RGB", (80, 80))])
    assert open_image(frames).size == (64, 64)


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 200), (40, 30), (257, 1), (3000, 2000), (400, 300), (320, 180), (1000, 500)]
)
def test_the_size_of_a_jpeg_xl_is_known_before_decoding(size: tuple[int, int]) -> None:
    for options in ({}, {"use_container": True}, {"exif": exif_orientation(6)}, {"lossless": True}):
        content = encode("JXL", Image.new("RGB", size), effort=1, **options)
        assert pixel_size(codestream(content)) == size
        with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels, limit 63;") as failure:
            open_image(content, limits=ImageLimits(max_pixels=63))
        assert failure.value.reason == "too_many_pixels"


def test_a_jpeg_xl_over_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode("JXL", Image.new("RGB", (4000, 4000)), effort=1)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("its pixels were decoded"))
    with pytest.raises(ImageError, match="4000 x 4000 pixels, limit 15999999"):
        open_image(content, limits=ImageLimits(max_pixels=15_999_999))


def turned(stream: bytes, orientation: int) -> bytes:
    """A codestream of 120 x 80 pixels with `orientation` in its header, in place of a header of defaults."""
    bits = f"{int.from_bytes(stream[2:4], 'little'):016b}"[::-1]
    size, defaults, transform, padding = bits[:9], bits[9], bits[10], bits[11:]
    assert (defaults, transform, set(padding)) == ("1", "1", {"0"})
    extra = "1" + f"{orientation - 1:03b}"[::-1] + "000"  # no intrinsic size, preview and animation
    eight_bits, no_channels, colors, no_extensions = "0" + "00" + "1", "00", "1" + "1" + "1", "00"
    header = size + "0" + extra + eight_bits + no_channels + colors + no_extensions + "1"
    header += "0" * (-len(header) % 8)
    return stream[:2] + int(header[::-1], 2).to_bytes(len(header) // 8, "little") + stream[4:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_xl_is_turned_once(orientation: int) -> None:
    stream = codestream(encode("JXL", gradient((120, 80)), quality=95))
    expected = np.asarray(to_rgb(open_image(encode("PNG", gradient((120, 80)), exif=exif_orientation(orientation)))))
    found = np.asarray(to_rgb(open_image(turned(stream, orientation)))).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


def test_a_jpeg_xl_is_turned_by_its_codestream_alone() -> None:
    """By ISO 18181 EXIF data says nothing about it; compressed metadata is not even unpacked."""
    picture = gradient((120, 80))
    for options in ({"exif": exif_orientation(6)}, {"exif": exif_orientation(3), "compress_metadata": True}):
        image = open_image(encode("JXL", picture, quality=95, **options))
        assert "exif" not in image.info
        assert np.abs(np.asarray(to_rgb(image)).astype(int) - np.asarray(picture)).mean() < 3


def test_a_jpeg_inside_a_jpeg_xl(tmp_path: Path) -> None:
    """Such a file can be turned into the JPEG again; its pixels are read without that."""
    (tmp_path / "photo.jpg").write_bytes(encode("JPEG", gradient((120, 80)), quality=95))
    buffer = io.BytesIO()
    formats.load_plugin("JXL")
    with Image.open(tmp_path / "photo.jpg") as photo:
        photo.save(buffer, "JXL", lossless_jpeg=True)
        found = np.asarray(to_rgb(open_image(buffer.getvalue()))).astype(int)
        assert np.abs(found - np.asarray(photo)).mean() < 2


@pytest.mark.parametrize("content", [b"\xff\x0a", CONTENT["JXL"][:12] + b"\0\0\0\1", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_a_cut_jpeg_xl(content: bytes) -> None:
    assert refusal(content).reason in ("damaged", "not_an_image")


def test_plugins_are_imported_only_when_they_are_needed() -> None:
    script = """
        import sys
        from lipsformer.images.open import ImageError, open_image
        from lipsformer.images.samples import SAMPLES
        open_image(SAMPLES / "Kaiser.jpg")
        try:
            open_image(b"text")
        except ImageError as error:
            print(str(error).endswith("HEIC or JPEG XL"))
        print(sorted({"pillow_heif", "pillow_jxl", "numpy"} & set(sys.modules)))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["True", "['numpy']"]
