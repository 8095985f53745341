"""The listing of a bulk prediction: every kind of source, in one order, and what cannot be read has its row."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer.datasets import walk
from lipsformer.inference.bulk.rows import Refusal
from lipsformer.inference.bulk.sources import ListedImage, list_images
from lipsformer.system.errors import InputError
from tests.support.images.files import encode
from tests.support.shards import write_shard

JPEG, PNG = encode("JPEG"), encode("PNG")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names, and a cache folder that is thrown away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))


def plant(*names: str, content: bytes = JPEG) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def listed(*sources: str, column: str | None = None) -> list[tuple[str, bytes | str]]:
    """The names, with the content of each image or its status."""
    found = [(image.name, image.read()) for image in list_images(sources, column)]
    return [(name, content.status if isinstance(content, Refusal) else content) for name, content in found]


def names(*sources: str) -> list[str]:
    return [name for name, _ in listed(*sources)]


def test_folders_are_sorted_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    plant("photos/b/2.jpg", "photos/b/1/x.png", "photos/a.jpg", "photos/c.jpg", "photos/b!/1.jpg", "photos/.x.jpg")
    expected = ["a.jpg", "b/1/x.png", "b/2.jpg", "b!/1.jpg", "c.jpg"]
    assert names("photos") == [f"photos/{name}" for name in expected]
    assert names("photos") == list(map(str, walk.find_images(Path("photos"))))
    assert "hidden" in capsys.readouterr().err
    assert names("photos/c.jpg", "photos/b/", "photos/c.jpg") == [
        "photos/c.jpg", "photos/b/1/x.png", "photos/b/2.jpg", "photos/c.jpg"
    ]  # fmt: skip


def test_a_folder_is_listed_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    plant("photos/a.jpg", "photos/b/1.jpg")
    images = list_images(["photos"])
    assert next(images).name == "photos/a.jpg"
    monkeypatch.setattr(walk, "read_folder", lambda *_: (_ for _ in ()).throw(AssertionError("it was read late")))
    with pytest.raises(AssertionError, match="late"):
        next(images)


def test_what_cannot_be_read_has_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = walk.read_folder

    def refuse(root: Path, name: str = "") -> walk.Folder:
        if name == "b/":
            raise InputError("photos/b: cannot be read (Permission denied); check its permissions")
        return real(root, name)

    monkeypatch.setattr(walk, "read_folder", refuse)
    plant("photos/a.jpg", "photos/b/1.jpg", "photos/c.jpg")
    plant("empty.jpg", content=b"")
    Path("nothing").mkdir()
    Path("loop.jpg").symlink_to("loop.jpg")
    Path("large.jpg").touch()
    os.truncate("large.jpg", 21 * 1024 * 1024)
    assert listed("photos", "none.jpg", "empty.jpg", "nothing", "loop.jpg", "large.jpg", "nul\0.jpg", "*.none") == [
        ("photos/a.jpg", JPEG), ("photos/b", "unreadable"), ("photos/c.jpg", JPEG), ("none.jpg", "missing"),
        ("empty.jpg", "empty"), ("nothing", "missing"), ("loop.jpg", "unreadable"), ("large.jpg", "too_many_bytes"),
        ("nul\0.jpg", "missing"), ("*.none", "missing"),
    ]  # fmt: skip
    (image,) = list_images(["large.jpg"])
    assert image.read() == Refusal("too_many_bytes", "22020096 bytes, limit 20971520; scale it down")


def test_patterns_are_expanded_unless_a_file_has_that_name() -> None:
    plant("photos/2.jpg", "photos/1.jpg", "photos/deep/3.jpg", "a[1].jpg")
    assert names("photos/?.jpg") == ["photos/1.jpg", "photos/2.jpg"]
    assert names("photos/**/*.jpg") == ["photos/1.jpg", "photos/2.jpg", "photos/deep/3.jpg"]
    assert names("phot*") == ["photos/1.jpg", "photos/2.jpg", "photos/deep/3.jpg"]
    assert names("a[1].jpg") == ["a[1].jpg"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1.jpg\nfolder\n\n2.jpg", ["1.jpg", "folder/x.jpg", "2.jpg"]),
        (b"1.jpg\r\n2.jpg\r\n", ["1.jpg", "2.jpg"]),
        (b"1.jpg\x00two\nlines.jpg\x002.jpg\x00", ["1.jpg", "two\nlines.jpg", "2.jpg"]),
        (b"*.jpg\n\xff.jpg\n", ["*.jpg", "\udcff.jpg"]),
        (b"\n".join(b"%06d" % number for number in range(20_000)), [f"{number:06d}" for number in range(20_000)]),
        (b"", []),
    ],
)  # fmt: skip
def test_names_on_stdin(text: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plant("folder/x.jpg")
    Path("list").write_bytes(text)
    with Path("list").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert [image.name for image in list_images(["-"])] == expected


def test_the_images_of_a_shard_need_no_labels(capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(Path("a.tar"), {"x/2.jpg": JPEG, "x/2.png": PNG, "1.jpg": b"", "1.cls": b"pear", "notes.txt": b"?"})
    assert listed("a.tar") == [("a.tar:x/2.jpg", JPEG), ("a.tar:x/2.png", PNG), ("a.tar:1.jpg", b"")]
    assert "a.tar: 1 entry left out, with no image extension: a.tar:notes.txt" in capsys.readouterr().err
    Path("cut.tar").write_bytes(Path("a.tar").read_bytes()[:1024])
    Path("a.tar.gz").write_bytes(b"\x1f\x8b123456")
    assert listed("cut.tar", "a.tar.gz", "none.tar") == [
        ("cut.tar", "unreadable"), ("a.tar.gz", "unreadable"), ("none.tar", "missing")
    ]  # fmt: skip


def write_table(**columns: object) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), "table.parquet")


def test_parquet_with_paths() -> None:
    plant("photos/1.jpg")
    Path("photos/there.parquet").parent.mkdir(exist_ok=True)
    write_table(number=[1, 2, 3], photo_file=["photos/1.jpg", None, "none.jpg"])
    with pytest.raises(InputError, match=r"table.parquet: no column of images found; name it with --column NAME"):
        list(list_images(["table.parquet"]))
    with pytest.raises(InputError, match=r"--column photo_fil: no such column; did you mean 'photo_file'\?"):
        list(list_images(["table.parquet"], "photo_fil"))
    assert listed("table.parquet", column="photo_file") == [
        ("photos/1.jpg", JPEG), ("table.parquet:0000001", "missing"), ("none.jpg", "missing")
    ]  # fmt: skip


def test_parquet_with_encoded_images() -> None:
    write_table(image=[{"bytes": JPEG, "path": "1.jpg"}, {"bytes": PNG, "path": None}, None], scan=[PNG, None, JPEG])
    assert listed("table.parquet") == [
        ("table.parquet:1.jpg", JPEG), ("table.parquet:0000001", PNG), ("table.parquet:0000002", b"")
    ]  # fmt: skip
    assert [content for _, content in listed("table.parquet", column="scan")] == [PNG, b"", JPEG]
    Path("table.parquet").write_bytes(b"PAR1 no more")
    assert listed("table.parquet") == [("table.parquet", "unreadable")]


def test_listing_is_lazy() -> None:
    def endless() -> Iterator[str]:
        yield from iter(lambda: "photo.jpg", "")

    class Endless(tuple[str, ...]):
        __slots__ = ()

        def __iter__(self) -> Iterator[str]:
            return endless()

    assert next(list_images(Endless())) == ListedImage(name="photo.jpg", file="photo.jpg")


def test_the_content_is_read_late() -> None:
    (image,) = list_images(["later.jpg"])
    plant("later.jpg", content=io.BytesIO(PNG).getvalue())
    assert image.read() == PNG
