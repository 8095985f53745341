"""Files whose structure would keep Pillow busy for long are refused before, and files that only look so are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer.images import structure_limits as complexity
from lipsformer.images.open import ImageError, open_image
from lipsformer.images.structure_limits import MAX_READS, MAX_SCANS, MAX_VALUES, CountedReads

MANY = MAX_READS + 1


def encode(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def scans(count: int) -> bytes:
    """A progressive JPEG with `count` scans: its last one, again and again."""
    content = encode("JPEG", progressive=True)
    parts = content.split(b"\xff\xda")
    last = b"\xff\xda" + parts[-1].removesuffix(b"\xff\xd9")
    return content.removesuffix(b"\xff\xd9") + last * (count - len(parts) + 1) + b"\xff\xd9"


def png(before: bytes = b"", after: bytes = b"") -> bytes:
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


COMPLEX: dict[str, Callable[[], bytes]] = {
    "jpeg scans": lambda: scans(MAX_SCANS + 1),
    "jpeg scans among segments": lambda: scans(MAX_SCANS + 1).replace(b"\xff\xda", b"\xff\xfe\0\2\xff\xff\xda"),
    "jpeg comments": lambda: after_start(encode("JPEG"), b"\xff\xfe\0\2" * MANY),
    "jpeg filling": lambda: after_start(encode("JPEG"), b"\xff" * MANY),
    "jpeg junk": lambda: after_start(encode("JPEG"), b"\xff\0" * MANY),
    "png chunks before": lambda: png(before=chunk(b"prVt") * MANY),
    "png chunks behind": lambda: png(after=chunk(b"prVt") * MANY),
    "png pieces": lambda: png(before=chunk(b"IDAT") * MANY),
    "gif comments": lambda: gif(b"!\xfe\1a\0" * MANY),
    "gif blocks": lambda: gif(b"!\xfe" + b"\1a" * MANY + b"\0"),
    "gif junk": lambda: gif(b"\1" * MANY),
    "bmp runs": lambda: bmp(MANY),
    "tiff strips": lambda: tiff(MAX_VALUES + 1),
    "tiff strips, big-endian": lambda: tiff(MAX_VALUES + 1, ">"),
    "bigtiff strips": lambda: tiff(MAX_VALUES + 1, big=True),
}


@pytest.mark.parametrize("kind", COMPLEX)
def test_too_much_structure_is_refused(kind: str, tmp_path: Path) -> None:
    content = COMPLEX[kind]()
    path = tmp_path / "photo"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(
            ImageError, match=r"photo: more than \d+ [a-z0-9 ]+, far more than in any photo; save it again"
        ) as refusal:
            open_image(source, name="photo")
        assert refusal.value.reason == "too_complex"


@pytest.mark.parametrize("kind", COMPLEX)
def test_it_is_the_structure_that_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limits Pillow takes these files, or finds them too short: nothing else is wrong with them."""
    content = COMPLEX[kind]()
    monkeypatch.setattr(complexity, "MAX_READS", 10**9)
    monkeypatch.setattr(complexity, "MAX_SCANS", 10**9)
    monkeypatch.setattr(complexity, "MAX_VALUES", 10**9)
    try:
        open_image(content)
    except ImageError as error:
        assert error.reason == "damaged"  # noqa: PT017
        assert kind == "bmp runs"


@pytest.mark.parametrize(
    "content",
    [scans(MAX_SCANS), tiff(5), tiff(5, ">"), tiff(5, big=True), gif(b"!\xfe\1a\0" * 9), png(chunk(b"prVt") * 9)],
    ids=["jpeg", "tiff", "tiff, big-endian", "bigtiff", "gif", "png"],
)
def test_a_little_structure_is_taken(content: bytes) -> None:
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
    monkeypatch.setattr(complexity, "MAX_READS", 200)
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
