"""What a dataset leaves out is counted by reason and named: in folders, in shards, and by every command."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
from pathlib import Path

import pytest

from lipsformer.datasets import LeftOut, find_images, open_dataset, open_labeled
from lipsformer.datasets.left_out import KEPT
from lipsformer.system.errors import InputError
from tests.support.shards import gray_jpeg, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))


def plant(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


PHOTOS = tuple(f"{label}/{number}.jpg" for label in "ab" for number in range(4))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "system"),
        ("a/.@__thumb/default1.jpg", "system"),
        ("@Recycle/a/1.jpg", "system"),
        ("#recycle/old.jpg", "system"),
        ("__MACOSX/a/._1.jpg", "system"),
        ("a/._1.jpg", "system"),
        ("a/Thumbs.db", "system"),
        ("b/desktop.ini", "system"),
        ("lost+found/1.jpg", "system"),
        ("a/.ipynb_checkpoints/1-checkpoint.jpg", "system"),
        ("a/.thumbnails/1.png", "system"),
        ("$RECYCLE.BIN/S-1/1.jpg", "system"),
        ("System Volume Information/1.jpg", "system"),
        ("a/.DS_Store", "system"),
        ("a/.nfs0000001", "system"),
        ("a/1.jpg:Zone.Identifier", "system"),
        (".git/1.jpg", "hidden"),
        ("a/.cache.jpg", "hidden"),
        ("a/1.txt", "extension"),
        ("a/photo", "extension"),
        ("a/clip.mp4", "extension"),
        ("cover.jpg", "stray"),
    ],
)
def test_entries_are_left_out_for_a_reason(file: str, reason: str, tmp_path: Path) -> None:
    root = plant(tmp_path / "data", *PHOTOS, file)
    data = open_dataset(root)
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.validation) == 8
    assert list(data.left_out.to_dict()) == [reason]
    assert data.left_out.count(reason) == 1  # type: ignore[arg-type]
    assert open_labeled(root, "ab").left_out.to_dict() == data.left_out.to_dict()
    found = LeftOut()
    assert len(find_images(root, found)) == 8 + (reason == "stray")
    assert bool(found) == (reason != "stray")


def test_links_and_special_files_are_counted(tmp_path: Path) -> None:
    root = plant(tmp_path / "data", *PHOTOS)
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "b" / "gone").symlink_to(tmp_path / "nowhere")
    (root / "b" / "itself.txt").symlink_to(root / "b" / "itself.txt")
    (root / "b" / "itself.jpg").symlink_to(root / "b" / "itself.jpg")  # listed, and unreadable when it is opened
    os.mkfifo(root / "b" / "pipe.jpg")
    left_out = open_dataset(root).left_out
    assert {reason: left_out.count(reason) for reason in left_out.reasons} == {
        "visited_link": 1, "broken_link": 2, "special_file": 1,
    }  # fmt: skip


def test_the_memory_is_bounded_and_lines_are_printable() -> None:
    left_out = LeftOut()
    for number in range(1000):
        left_out.add("extension", f"{number}\n.txt")
    (line,) = left_out.lines("data")
    assert line == "data: 1,000 entries left out, with no image extension: 0\N{REPLACEMENT CHARACTER}.txt, ..."
    assert len(left_out.reasons["extension"].names) == KEPT
    other = LeftOut()
    other.update(left_out, "deep/")
    other.update(left_out)
    assert other.count("extension") == 2000
    assert other.reasons["extension"].names[0] == "deep/0\n.txt"
    assert LeftOut.from_array(other.to_array()).to_dict() == other.to_dict()


def tar(path: Path, *entries: tuple[str, bytes] | tuple[str, bytes, str]) -> Path:
    """A tar of files, and of links: (name, type, target)."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as target:
        for name, content, *link in entries:
            member = tarfile.TarInfo(name)
            if link:
                member.type, member.linkname = content, link[0]
                target.addfile(member)
            else:
                member.size = len(content)
                target.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("shop_jpg.rf.0a.jpg", "shop_jpg.rf.0a.cls"),
        ("v1.2/frame.0001.png", "v1.2/frame.0001.json"),
        ("IMG.2020.01.02.JPG", "IMG.2020.01.02.CLS"),
        ("a.b.c.jpg", "a.b.cls"),
        ("a.b.c.jpg", "a.cls"),
    ],
)
def test_keys_of_shards_may_have_dots(image: str, label: str, tmp_path: Path) -> None:
    content = {image: gray_jpeg(10), label: b'{"label": "x"}' if label.endswith("json") else b"x"}
    for number in range(2):
        content |= {f"{number}.jpg": gray_jpeg(20), f"{number}.cls": b"y"}
    split = open_labeled(write_shard(tmp_path / "data" / "0.tar", content), ["x", "y"])
    assert dict(zip(split.names(), split.labels.tolist(), strict=True))[f"0.tar:{image}"] == 0
    assert len(split) == 3
    assert not split.left_out


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        (tarfile.LNKTYPE, "copy.jpg", "d/1.jpg"),
        (tarfile.LNKTYPE, "./copy.jpg", "./d/1.jpg"),
        (tarfile.SYMTYPE, "d/copy.jpg", "1.jpg"),
        (tarfile.SYMTYPE, "e/copy.jpg", "../d/1.jpg"),
    ],
)
def test_links_in_shards_are_images(kind: bytes, name: str, target: str, tmp_path: Path) -> None:
    label = f"{name.rpartition('.')[0]}.cls"
    path = tar(
        tmp_path / "data" / "0.tar",
        ("d/1.jpg", gray_jpeg(90)), ("d/1.cls", b"x"), (name, kind, target), (label, tarfile.LNKTYPE, "d/1.cls"),
    )  # fmt: skip
    split = open_labeled(path, ["x"])
    assert [*split.names()] == ["0.tar:d/1.jpg", f"0.tar:{name}"]
    assert split.open(1).getpixel((0, 0)) == split.open(0).getpixel((0, 0))


def test_what_shards_leave_out_is_counted(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "data" / "0.tar",
        ("1.jpg", gray_jpeg(0)), ("1.cls", b"x"), ("1.mask.png", gray_jpeg(0)), ("lonely.cls", b"x"), ("1.txt", b""),
        ("__MACOSX/._1.jpg", b""), (".hidden.jpg", b""), ("gone.jpg", tarfile.SYMTYPE, "/etc/gone.jpg"),
        ("p.jpg", tarfile.FIFOTYPE, ""),
    )  # fmt: skip
    for _ in range(2):  # the second time from the cache
        os.utime(path, (1e9, 1e9))
        left_out = open_labeled(path, ["x"]).left_out
        assert {reason: left_out.count(reason) for reason in left_out.reasons} == {
            "extension": 1, "system": 1, "hidden": 1, "special_file": 1, "broken_link": 1, "stray": 2,
        }  # fmt: skip


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"na\xefve"])
def test_a_class_folder_that_is_not_utf8_is_refused(name: bytes, tmp_path: Path) -> None:
    plant(tmp_path, *PHOTOS)
    os.mkdir(os.fsencode(tmp_path) + b"/" + name)  # noqa: PTH102 - a name of bytes
    with pytest.raises(InputError, match="is not UTF-8; rename it") as failure:
        open_dataset(tmp_path)
    assert repr(name) in str(failure.value)


@pytest.mark.parametrize("name", ["café", "Ångström", "한국", "ñandú"])
def test_a_class_has_one_unicode_form(name: str, tmp_path: Path) -> None:
    nfc, nfd = unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
    assert nfc != nfd
    data = open_dataset(plant(tmp_path / "one", f"{nfd}/1.jpg", f"{nfd}/2.jpg", "z/1.jpg", "z/2.jpg", "b/1.jpg"))
    assert data.classes == tuple(sorted(("b", nfc, "z")))
    assert [data.classes[label] for label in data.train.labels] == [
        unicodedata.normalize("NFC", image.partition("/")[0]) for image in data.train.names()
    ]
    for known in (nfc, nfd):
        assert set(open_labeled(tmp_path / "one", ["z", "b", known]).labels.tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="in different Unicode forms"):
        open_dataset(plant(tmp_path / "two", f"{nfc}/1.jpg", f"{nfd}/1.jpg"))
    shard = write_shard(tmp_path / "three" / "0.tar", {"1.jpg": gray_jpeg(0), "1.cls": nfd.encode()})
    assert open_labeled(shard, [nfc]).labels.tolist() == [0]
