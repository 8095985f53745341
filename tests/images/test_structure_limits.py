"""Files whose structure would keep Pillow busy are rejected, and files that only look so are not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsformer.images import structure_limits
from lipsformer.images.open import ImageError, open_image
from lipsformer.images.structure_limits import MAX_READS, MAX_SCANS, MAX_VALUES, CountedReads
from tests.support.image_files import encode, png_chunk


def scans(count: int) -> bytes:
    """A progressive JPEG with `count` scans: its last one, again and again."""
    content = encode("JPEG", progressive=True)
    parts = content.split(b"\xff\xda")
    last = b"\xff\xda" + parts[-1].removesuffix(b"\xff\xd9")
    return content.removesuffix(b"\xff\xd9") + last * (count - len(parts) + 1) + b"\xff\xd9"


def png_with(before: bytes = b"", after: bytes = b"") -> bytes:
    content = encode("PNG")
    start, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    return content[:start] + before + content[start:end] + after + content[end:]


def gif(before: bytes) -> bytes:
    content = encode("GIF")
    start = 13 + 3 * 2 ** ((content[10] & 7) + 1)  # behind the palette
    return content[:start] + before + content[start:]


def bmp(runs: int) -> bytes:
    data = b"\1\1" * runs + b"\0\1"
    header = struct.pack("<IiiHHIIIIII", 40, 5000, 1000, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


def tiff(strips: int, order: str = "<", big: bool = False) -> bytes:
    """A gray TIFF of one pixel in width, each row a strip."""
    values = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    head, field, count = ("QQQ", "HHQQ", "Q") if big else ("I", "HHII", "H")
    start = 16 if big else 8
    tables = start + struct.calcsize(order + count) + struct.calcsize("=" + field) * 9 + struct.calcsize("=" + head[0])
    rows = [(tag, 4, 1, value) for tag, value in values]
    rows += [(273, 4, strips, tables), (279, 4, strips, tables + 4 * strips)]
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    content += struct.pack(order + "HHQ", 8, 0, start) if big else struct.pack(order + "I", start)
    content += struct.pack(order + count, len(rows))
    for tag, kind, many, value in sorted(rows):
        content += struct.pack(order + field, tag, kind, many, value)
    content += struct.pack(order + head[0], 0)
    return content + struct.pack(f"{order}I", 0) * strips + struct.pack(f"{order}I", 1) * strips


def after_start(content: bytes, more: bytes) -> bytes:
    return content[:2] + more + content[2:]


# Files with `count` parts each.
COMPLEX: dict[str, Callable[[int], bytes]] = {
    "jpeg scans": lambda count: scans(count),
    "jpeg scans among segments": lambda count: scans(count).replace(b"\xff\xda", b"\xff\xfe\0\2\xff\xff\xda"),
    "jpeg comments": lambda count: after_start(encode("JPEG"), b"\xff\xfe\0\2" * count),
    "jpeg filling": lambda count: after_start(encode("JPEG"), b"\xff" * count),
    "jpeg junk": lambda count: after_start(encode("JPEG"), b"\xff\0" * count),
    "png chunks before": lambda count: png_with(before=png_chunk(b"prVt") * count),
    "png chunks behind": lambda count: png_with(after=png_chunk(b"prVt") * count),
    "png pieces": lambda count: png_with(before=png_chunk(b"IDAT") * count),
    "gif comments": lambda count: gif(b"!\xfe\1a\0" * count),
    "gif blocks": lambda count: gif(b"!\xfe" + b"\1a" * count + b"\0"),
    "gif junk": lambda count: gif(b"\1" * count),
    "bmp runs": lambda count: bmp(count),
    "tiff strips": lambda count: tiff(count),
    "tiff strips, big-endian": lambda count: tiff(count, ">"),
    "bigtiff strips": lambda count: tiff(count, big=True),
}
LIMITS = ("MAX_READS", "MAX_SCANS", "MAX_VALUES")
LOW = 500  # for most cases: with the real limits they would take half a minute


def set_limits(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    for name in LIMITS:
        monkeypatch.setattr(structure_limits, name, limit)


def assert_too_complex(source: bytes | Path) -> None:
    message = r"photo: more than \d+ [a-z0-9 ]+, far more than in any photo; save it again"
    with pytest.raises(ImageError, match=message) as failure:
        open_image(source, name="photo")
    assert failure.value.reason == "too_complex"


@pytest.mark.parametrize("kind", COMPLEX)
def test_too_much_structure_is_rejected(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, LOW)
    content = COMPLEX[kind](LOW + 1)
    path = tmp_path / "photo"
    path.write_bytes(content)
    assert_too_complex(content)
    assert_too_complex(path)


@pytest.mark.parametrize(
    ("kind", "limit"), [("jpeg filling", MAX_READS), ("jpeg scans", MAX_SCANS), ("bigtiff strips", MAX_VALUES)]
)
def test_the_real_limits_hold(kind: str, limit: int) -> None:
    assert_too_complex(COMPLEX[kind](limit + 1))


@pytest.mark.parametrize("kind", COMPLEX)
def test_it_is_the_structure_that_is_rejected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limits Pillow reads these files, or finds them too short: nothing else is wrong with them."""
    set_limits(monkeypatch, 10**9)
    try:
        open_image(COMPLEX[kind](LOW + 1))
    except ImageError as error:
        assert error.reason == "damaged"  # noqa: PT017
        assert kind == "bmp runs"


@pytest.mark.parametrize(
    "content",
    [
        scans(MAX_SCANS),
        tiff(5),
        tiff(5, ">"),
        tiff(5, big=True),
        gif(b"!\xfe\1a\0" * 9),
        png_with(png_chunk(b"prVt") * 9),
    ],
    ids=["jpeg", "tiff", "tiff, big-endian", "bigtiff", "gif", "png"],
)
def test_a_little_structure_is_accepted(content: bytes) -> None:
    open_image(content).load()


def test_the_mark_of_a_scan_may_occur_elsewhere(samples: list[Path]) -> None:
    """In the video that a phone appends, and in what it keeps to itself in front."""
    photo = samples[0].read_bytes()
    expected = np.asarray(open_image(photo))
    marks = b"\xff\xda" * 1000
    note = b"\xff\xed" + struct.pack(">H", len(marks) + 2) + marks
    for content in (photo + marks, after_start(photo, note)):
        assert np.array_equal(np.asarray(open_image(content)), expected)


@pytest.mark.parametrize(
    "content", [b"II*\0", b"MM\0*\0\0", b"II+\0" + b"\xff" * 12, b"II*\0" + b"\xff" * 90, b"\xff\xd8"]
)
def test_what_is_cut_off_is_not_complex(content: bytes) -> None:
    with pytest.raises(ImageError) as refusal:
        open_image(content)
    assert refusal.value.reason in ("not_an_image", "damaged")


def test_reads_are_counted() -> None:
    stream = CountedReads(b"abc")
    assert (stream.read(1), stream.read()) == (b"a", b"bc")
    assert stream.left == MAX_READS - 2


def test_a_photo_takes_few_reads(samples: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_limits, "MAX_READS", 200)
    for path in samples:
        assert min(open_image(path).size) > 200


def test_a_decoder_that_runs_out_of_memory_says_so() -> None:
    """A tile of four gigapixels in an image of one: the decoder refuses to hold it."""
    data = zlib.compress(bytes(100_000))
    fields = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, 65536), (323, 65536)]
    fields += [(324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    content = b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + data
    with pytest.raises(ImageError, match="needs more memory than there is") as refusal:
        open_image(content)
    assert refusal.value.reason == "too_much_memory"
