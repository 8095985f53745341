"""Opening untrusted images: any bytes give an image or one clear error."""

from __future__ import annotations

import io
import random
import resource
import struct
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from lipsformer.images.open import ImageError, ImageLimits, open_image
from lipsformer.images.rgb import to_rgb
from lipsformer.system.errors import InputError
from tests.support.images.files import encode, png

OUTCOMES = {"image", "empty", "not_an_image", "too_many_pixels", "too_complex", "too_much_memory", "damaged"}
PHOTO_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL")
SMALL = (40, 30)


def attempt(content: bytes) -> str:
    """The outcome: "image", or the reason for rejection. Any other exception fails the test."""
    try:
        to_rgb(open_image(content))
    except ImageError as error:
        return error.reason if len(str(error).splitlines()) == 1 else "a message of several lines"
    return "image"


@pytest.mark.parametrize("kind", PHOTO_FORMATS)
def test_formats_are_known_by_content_not_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    path.write_bytes(encode(kind, SMALL))
    image = open_image(path)
    assert image.format == kind
    assert image.size == SMALL
    assert len(image.tobytes()) >= 40 * 30


def test_a_decoded_image_holds_no_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode("PNG"))
    image = open_image(path)
    path.unlink()
    assert image.convert("L").getextrema()[1] > 200


@pytest.mark.parametrize("kind", ["EPS", "PSD", "PDF", "ICO", "TGA", "JPEG2000", "ICNS", "PCX", "SGI", "DDS"])
def test_decoders_of_other_formats_never_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "PSD":
        content = b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 1, 1, 8, 3) + b"\0" * 64
    else:
        content = encode(kind, (32, 32))
    Image.init()
    for other in set(Image.OPEN) - set(PHOTO_FORMATS):
        monkeypatch.setitem(Image.OPEN, other, (lambda *_: pytest.fail("another decoder ran"), None))
    with pytest.raises(ImageError, match="not an image of a known format; send JPEG, PNG") as failure:
        open_image(content, name="photo.jpg")
    assert failure.value.reason == "not_an_image"
    assert str(failure.value).startswith("photo.jpg: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"hello, I am no image" * 10, "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.4", "not_an_image"),
        (b"\xff\xd8\xff", "not_an_image"),
        (b"P6\n0 5\n255\n", "not_an_image"),
    ],
)
def test_what_is_not_an_image_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as failure:
        open_image(content)
    assert failure.value.reason == reason
    assert failure.value.exit_code == 2


def test_too_many_bytes_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ImageLimits(max_bytes=100)
    content = encode("PNG")
    path = tmp_path / "big.png"
    path.write_bytes(content)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for source in (content, path):
        with pytest.raises(ImageError, match=rf"{len(content)} bytes, limit 100;") as failure:
            open_image(source, limits=limits)
        assert failure.value.reason == "too_many_bytes"


def test_limits_are_inclusive() -> None:
    content = encode("PNG", SMALL)
    assert open_image(content, limits=ImageLimits(max_bytes=len(content), max_pixels=1200)).size == SMALL
    with pytest.raises(ImageError, match="40 x 30 pixels, limit 1199;"):
        open_image(content, limits=ImageLimits(max_pixels=1199))


def webp_bomb() -> bytes:
    content = bytearray(encode("WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    content[at : at + 4] = struct.pack("<I", 16382 | 16382 << 14)
    return bytes(content)


def gif_bomb() -> bytes:
    """A screen of 1 x 1 that holds a frame of 65535 x 65535."""
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"


def tiff_bomb() -> bytes:
    content = encode("TIFF", SMALL, compression="tiff_lzw")
    entry = struct.pack("<HHI", 256, 3, 1)
    at = content.index(entry) + len(entry)
    return content[:at] + struct.pack("<I", 60_000) + content[at + 4 :].replace(
        struct.pack("<HHII", 257, 3, 1, 30), struct.pack("<HHII", 257, 3, 1, 60_000)
    )  # fmt: skip


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(30_000, 30_000, color=2),
    "png over the warning": lambda: png(10_000, 10_000, color=2),
    "png of 51 megapixels": lambda: png(51_000, 1_000, color=2),
    "png beyond 32 bits": lambda: png(2**31 - 1, 2**31 - 1, color=2),
    "webp": webp_bomb,
    "gif": gif_bomb,
    "tiff": tiff_bomb,
    "bmp": lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 200, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pixel_bomb_is_rejected_before_decoding(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = BOMBS[bomb]()
    assert len(content) < 3000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("its pixels were decoded"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="limit 50000000; scale it down") as failure:
        open_image(content)
    assert failure.value.reason == "too_many_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("kind", PHOTO_FORMATS)
def test_no_cut_raises_anything_else(kind: str) -> None:
    content = encode(kind, SMALL)
    cuts = sorted({len(content) * step // 60 for step in range(60)} | set(range(min(40, len(content)))))
    results = [attempt(content[:cut]) for cut in cuts]
    assert set(results) <= OUTCOMES
    assert results[0] == "empty"
    assert results.count("image") < len(results) / 3  # some formats end with what is not needed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_that_is_cut_in_the_middle_is_damaged(kind: str, samples: list[Path]) -> None:
    buffer = io.BytesIO()
    open_image(samples[0]).save(buffer, kind)
    content = buffer.getvalue()
    for share in (0.3, 0.5, 0.7, 0.9):
        with pytest.raises(ImageError) as failure:
            open_image(content[: int(len(content) * share)])
        assert failure.value.reason in ("damaged", "not_an_image")


@pytest.mark.parametrize("kind", PHOTO_FORMATS)
def test_no_flipped_bytes_raise_anything_else(kind: str) -> None:
    draw = random.Random(kind)  # noqa: S311 - a seed, not a secret
    original = encode(kind, SMALL)
    results = []
    for _ in range(250):
        content = bytearray(original)
        for _ in range(draw.choice((1, 1, 2, 8))):
            content[draw.randrange(min(len(content), draw.choice((64, 10**6))))] = draw.randrange(256)
        results.append(attempt(bytes(content)))
    assert set(results) <= OUTCOMES
    assert len(set(results)) > 1  # both outcomes occur, so the flips did reach the decoder


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg: no such image file; check the path"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="Is a directory"):
        open_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: empty"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path / "empty.jpg" / "below")


def odd_jpeg() -> bytes:
    """A photo whose MPO index is damaged: Pillow reads it, with a warning."""
    content = encode("MPO", SMALL)
    at = content.index(b"MPF\0") + 4
    return content[:at] + b"\0" * 20 + content[at + 20 :]


def test_pillow_does_warn_of_the_odd_file() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(odd_jpeg()))
    assert any("malformed MPO" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("options", [[], ["-W", "error"], ["-W", "always"]], ids=["plain", "errors", "always"])
def test_warnings_do_not_leak(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "odd.jpg").write_bytes(odd_jpeg())
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000, color=2))
    script = """
        import pathlib, sys
        from lipsformer.images.open import ImageError, open_image
        folder = pathlib.Path(sys.argv[1])
        print(open_image(folder / "odd.jpg").size)
        try:
            open_image(folder / "large.png")
        except ImageError as error:
            print(error.reason)
    """
    command = [sys.executable, *options, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["(40, 30)", "too_many_pixels"]
    assert result.stderr == ""


def test_text_ppm_is_refused_unread() -> None:
    """Its comments cost Pillow time that grows with their square."""
    with pytest.raises(ImageError) as refusal:
        open_image(b"P2 100 100 255\n" + b"#\n" * 500_000)
    assert refusal.value.reason == "not_an_image"
