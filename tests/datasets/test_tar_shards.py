"""Tar shards: found, listed, labeled and read like folders, and refused in one line where they cannot be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsformer.datasets import Split, open_dataset, open_labeled
from lipsformer.datasets.shards import tar_members
from lipsformer.datasets.shards.braces import expand
from lipsformer.datasets.shards.shard_listing import ShardListing
from lipsformer.datasets.shards.tar_shards import ShardSplit
from lipsformer.images.open import ImageError
from lipsformer.system.errors import InputError
from tests.support.shards import gray_jpeg, members, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def level(split: Split, index: int) -> int:
    value = split.open(index).getpixel((0, 0))
    assert isinstance(value, tuple)
    return round(value[0] / 10)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as failure:
        open_dataset(path)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def in_folders(root: Path, train: dict[str, bytes], val: dict[str, bytes]) -> Path:
    write_shard(root / "train" / "000.tar", train)
    write_shard(root / "val" / "000.tar", val)
    return root


def in_names(root: Path, train: dict[str, bytes], val: dict[str, bytes]) -> Path:
    write_shard(root / "imagenet-train-000.tar", train)
    write_shard(root / "imagenet-validation-000.tar", val)
    return root


def in_braces(root: Path, train: dict[str, bytes], val: dict[str, bytes]) -> Path:
    in_names(root, train, val)
    write_shard(root / "imagenet-train-999.tar", {"x.jpg": b""})  # not named
    return root / "imagenet-{train,validation}-{000..000}.tar"


def in_brace_folders(root: Path, train: dict[str, bytes], val: dict[str, bytes]) -> Path:
    in_folders(root, train, val)
    return root / "{train,val}" / "{000..000}.tar"


@pytest.mark.parametrize("keep", [in_folders, in_names, in_braces, in_brace_folders])
def test_splits_classes_and_random_access(keep: Callable[..., Path], tmp_path: Path) -> None:
    data = open_dataset(keep(tmp_path / "data", members(a="dog", b="cat", c="dog"), members(d="cat")))
    assert data.root == tmp_path / "data"
    assert data.classes == ("cat", "dog")
    assert (data.train.name, data.train.labels.tolist()) == ("train", [1, 0, 1])
    assert (data.validation.name, data.validation.labels.tolist()) == ("val", [0])
    assert [level(data.train, index) for index in (2, 0, 1)] == [3, 1, 2]
    assert [name.rpartition(":")[2] for name in data.train.names()] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [data.train.where(index) for index in range(3)] == [
        str(tmp_path / "data" / name) for name in data.train.names()
    ]
    chosen: Split = pickle.loads(pickle.dumps(data.train.select(np.array([2, 1]))))  # noqa: S301 - our own
    assert [level(chosen, index) for index in range(2)] == [3, 2]


def test_shards_form_a_split_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_shard(tmp_path / f"train-{number:03}.tar", members(**{f"k{number}": "ab"[number % 2], "x": "b"}))
    write_shard(tmp_path / "test-000.tar", members(t="b"))
    data = open_dataset(tmp_path)
    assert list(data.train.names()) == [
        f"train-{number:03}.tar:{key}.jpg" for number in (1, 2, 10) for key in (f"k{number}", "x")
    ]
    assert data.train.labels.tolist() == [1, 1, 0, 1, 0, 1]
    assert [level(data.train, index) for index in range(6)] == [1, 2, 1, 2, 1, 2]
    assert data.validation.name == "test"


def test_without_splits_a_tenth_is_held_out_and_stays_the_same(tmp_path: Path) -> None:
    keys = {f"k{number}": "ab"[number % 2] for number in range(40)}
    write_shard(tmp_path / "here" / "data-0.tar", members(**keys))
    data = open_dataset(tmp_path / "here")
    assert (len(data.train), len(data.validation)) == (36, 4)
    shutil.move(tmp_path / "here", tmp_path / "there")
    again = open_dataset(tmp_path / "there" / "data-{0..0}.tar")
    assert list(again.validation.names()) == list(data.validation.names())
    assert open_labeled(tmp_path / "there", ["b", "a"]).labels.tolist() == [1, 0] * 20


@pytest.mark.parametrize(
    ("labels", "files", "classes"),
    [
        ({"a": 10, "b": 9, "c": 10}, {}, ("class 9", "class 10")),
        ({"a": "1", "b": "000", "c": 1}, {}, ("class 0", "class 1")),
        ({"a": 2, "b": 0, "c": 2}, {"classes.txt": "z\ny\nx\n"}, ("z", "x")),
        ({"a": 1, "b": 0, "c": 1}, {"train/classes.json": '["one", "two"]'}, ("one", "two")),
        ({"a": 1, "b": "x", "c": 1}, {"classes.txt": "z\ny"}, ("1", "x")),
    ],
)
def test_class_names(
    labels: dict[str, object], files: dict[str, str], classes: tuple[str, ...], tmp_path: Path
) -> None:
    in_folders(tmp_path, members(**labels), members(v=labels["a"]) if "x" not in labels.values() else members(v="x"))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    data = open_dataset(tmp_path)
    assert data.classes == classes
    assert [data.classes[label] for label in data.train.labels[[0, 2]]] == [data.classes[data.train.labels[0]]] * 2
    assert data.train.labels[0] != data.train.labels[1]


def test_labels_in_json(tmp_path: Path) -> None:
    content = {}
    for key, label in (("a", {"label": 3}), ("b", {"class": "cat"}), ("c", {"label": "dog", "class": 1})):
        content |= {f"{key}.json": json.dumps(label).encode(), f"{key}.jpg": gray_jpeg(0)}
    found = ShardListing.open(write_shard(tmp_path / "0.tar", content))
    assert [found.texts[label] for label in found.labels] == ["3", "cat", "dog"]


def test_what_belongs_together_and_what_is_left_out(tmp_path: Path) -> None:
    content = {
        "one/a.cls": b"x", "./two/a.cls": b"y", "one/a.jpg": gray_jpeg(10), "one/a.seg.png": b"", "one/a.txt": b"",
        "./two/a.JPG": gray_jpeg(20), "._a.jpg": b"", "lonely.cls": b"z",
    }  # fmt: skip
    found = ShardListing.open(write_shard(tmp_path / "0.tar", content))
    assert [found.names.text(index) for index in range(len(found.names))] == ["one/a.jpg", "./two/a.JPG"]
    assert [found.texts[label] for label in found.labels] == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.jpg": b""}, "0.tar:a.jpg: no label; add 'a.cls' with its class, or 'a.json'"),
        ({"d/a.b.jpg": b"", "d/a.jpg": b"", "d/a.cls": b" \n"}, "0.tar:d/a.jpg: no label; add 'd/a.cls'"),
        ({"a.jpg": b"", "a.cls": b"\xff"}, "no label"),
        ({"a.jpg": b"", "a.cls": b"two\nlines"}, "no label"),
        ({"a.jpg": b"", "a.json": b'{"label": true}'}, "no label"),
        ({"a.jpg": b"", "a.json": b'{"caption": "a cat"}'}, "no label"),
        ({"a.jpg": b"", "a.json": b"[" * 100_000}, "no label"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, "'a.png' is the second image of that name; rename one"),
    ],
)
def test_images_without_a_clear_label_are_reported(content: dict[str, bytes], message: str, tmp_path: Path) -> None:
    assert message in refusal(write_shard(tmp_path / "0.tar", content))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz"])
def test_compressed_shards_are_reported(name: str, mode: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / name, members(a=1, b=2), mode)
    for root in (path, tmp_path):
        assert f"{name}: compressed, so its images cannot be read one by one; decompress it to a plain .tar" in refusal(
            root
        )


def test_every_cut_is_reported(tmp_path: Path) -> None:
    content = write_shard(tmp_path / "whole.tar", members(a=1, b=2)).read_bytes()
    end = (content.rindex(b"2") // 512 + 1) * 512  # where the blocks of zeros begin
    for cut in (0, 1, 100, 512, 700, 1024, end - 1000, end - 512, end - 1, end, end + 511):
        (tmp_path / "0.tar").write_bytes(content[:cut])
        assert "0.tar: not a complete tar file" in refusal(tmp_path / "0.tar"), cut
    (tmp_path / "0.tar").write_bytes(content[: end + 512])
    assert len(ShardListing.open(tmp_path / "0.tar").labels) == 2


@pytest.mark.parametrize("junk", [b"no tar at all" * 100, b"<html>log in</html>", b"\0" * 100])
def test_files_that_are_not_tars_is_reported(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(junk)
    assert "0.tar: not a complete tar file" in refusal(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"train-0.tar": members(a="x")}, "(train shards): 1 class found, at least 2 are needed"),
        ({"0.tar": {}}, "(shards): 0 classes found, at least 2 are needed; add images as"),
        ({"test-0.tar": members(a="x", b="y")}, "has test but no train split; add"),
        (
            {"train-0.tar": members(a="x", b="y"), "val-0.tar": {}},
            "(val shards): no images; add some or remove this split",
        ),
        (
            {"train-0.tar": members(a="x", b="y"), "val-0.tar": members(k="x", c="Bee")},
            "unknown class 'Bee'; rename or remove the class",
        ),
        ({"train-0.tar": members(a="x", b="y"), "extra.tar": members(c="x")}, "extra.tar: belongs to no split"),
        ({"0.tar": members(a="x", b="y")}, "one image per class leaves none to validate on"),
    ],
)
def test_shards_that_make_no_dataset_are_reported(
    shards: dict[str, dict[str, bytes]], message: str, tmp_path: Path
) -> None:
    for name, content in shards.items():
        write_shard(tmp_path / name, content)
    assert message in refusal(tmp_path)


def test_an_unknown_class_is_shown_where_it_is(tmp_path: Path) -> None:
    in_names(tmp_path, members(a="x", b="y"), members(k="x", c="Bee"))
    assert refusal(tmp_path).startswith(f"{tmp_path}/imagenet-validation-000.tar:c.jpg: unknown class 'Bee'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ntwo", "2 class names, but label 2 occurs; name classes 0 to 2"),
        ("crane\ntwo\ncrane", "'crane' names both 0 and 2; give each its own name"),
        ("one\n\nthree", "name 2 of 3 is empty"),
    ],
)
def test_class_names_that_do_not_fit_are_reported(text: str, message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", members(a=0, b=2))
    (tmp_path / "classes.txt").write_text(text)
    assert f"{tmp_path / 'classes.txt'}: {message}" in refusal(tmp_path)


def test_missing_shards_of_a_pattern_are_reported(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", members(a="x", b="y"))
    assert "train-1.tar: no such shard (2 of 3 are missing)" in refusal(tmp_path / "train-{0..2}.tar")
    assert "nothing.tar: no such shard (1 of 1 are missing)" in refusal(tmp_path / "nothing.tar")


def test_a_stray_tar_does_not_hide_class_folders(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gray_jpeg(0))
    write_shard(tmp_path / "backup.tar", members(x="y"))
    assert open_dataset(tmp_path).classes == ("a", "b")


def test_members_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    damaged = {"c.jpg": gray_jpeg(30, (64, 64))[:200], "c.cls": b"x", "d.jpg": b"", "d.cls": b"y"}
    path = write_shard(tmp_path / "0.tar", members(a="x", b="y") | damaged)
    split = open_labeled(path, ["x", "y"])
    for index, reason in ((2, "damaged"), (3, "empty")):
        with pytest.raises(ImageError) as failure:
            split.open(index)
        assert str(failure.value).startswith(f"{path}:{'abcd'[index]}.jpg: ")
        assert reason in str(failure.value)
    assert split.open(0, smallest=lambda _: (1, 1)).size == (1, 1)
    os.truncate(path, 100)
    with pytest.raises(InputError, match=r"0\.tar:a\.jpg: 0.tar is shorter than when it was listed"):
        split.open(0)
    path.unlink()
    with pytest.raises(InputError, match=r"0\.tar:a\.jpg: cannot be read"):
        split.open(0)


def test_too_large_a_member_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_labeled(write_shard(tmp_path / "0.tar", members(a="x")), ["x"])
    assert isinstance(split, ShardSplit)
    split.sizes[0] = 2**40
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ImageError, match=r"0\.tar:a\.jpg: 1099511627776 bytes, limit"):
        split.open(0)


def walked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A note for each tar that is walked from now on."""
    found: list[object] = []
    opened = tarfile.open

    def recorded(*arguments: object, **options: object) -> object:
        found.append(arguments)
        return opened(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(tar_members.tarfile, "open", recorded)
    return found


def content_of(found: ShardListing) -> tuple[object, ...]:
    names = [found.names.text(index) for index in range(len(found.names))]
    return names, found.offsets.tolist(), found.sizes.tolist(), [found.texts[label] for label in found.labels]


def test_a_shard_is_walked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shard(tmp_path / "0.tar", members(a="x", b="y"))
    os.utime(path, (time.time() - 60,) * 2)
    fresh = ShardListing.open(path)
    notes = walked(monkeypatch)
    assert content_of(ShardListing.open(path)) == content_of(fresh)
    assert notes == []
    write_shard(path, members(a="x", b="z"))
    notes.clear()
    assert content_of(ShardListing.open(path))[3] == ["x", "z"]
    assert len(notes) == 1


def test_a_shard_written_just_now_is_not_cached(tmp_path: Path, cache: Path) -> None:
    ShardListing.open(write_shard(tmp_path / "0.tar", members(a="x")))
    assert not cache.exists()


@pytest.mark.parametrize("key", ["offsets", "sizes", "labels", "names_ends", "texts_blob"])
@pytest.mark.parametrize("value", [np.full(2, -1), np.full(2, 99), np.zeros(3, np.int64), np.zeros(2), None])
def test_a_damaged_listing_is_never_worse_than_none(
    key: str, value: np.ndarray | None, tmp_path: Path, cache: Path
) -> None:
    path = write_shard(tmp_path / "0.tar", members(a="x", b="y"))
    os.utime(path, (time.time() - 60,) * 2)
    fresh = ShardListing.open(path)
    (index,) = (cache / "indexes").iterdir()
    with np.load(index) as file:
        arrays = {**file, key: value}
    with index.open("wb") as target:
        np.savez(target, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    found = ShardListing.open(path)
    if key in ("offsets", "sizes") and value is not None and value.dtype == np.int64 and (value == 99).all():
        with pytest.raises(ImageError):  # it fits, and the image is checked when it is opened
            open_labeled(path, ["x", "y"]).open(0)
    else:
        assert content_of(found) == content_of(fresh)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{098..101}", ["098", "099", "100", "101"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("x{train-{00..01},val-{0..0}}y", ["xtrain-00y", "xtrain-01y", "xval-0y"]),
        ("{,s}x", ["x", "sx"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a{0..1", "unbalanced '{'; write {a,b} or {000..146}"),
        ("a0..1}", "unbalanced '}'; write {a,b}"),
        ("{a}", "'{a}' is neither a list nor a range"),
        ("{}", "neither a list nor a range"),
        ("{0..100000}", "more than 100000 names; make its ranges smaller"),
        ("{0..999}{0..999}", "more than 100000 names; make its ranges smaller"),
    ],
)
def test_braces_that_mean_nothing_are_reported(pattern: str, message: str) -> None:
    with pytest.raises(InputError) as failure:
        expand(pattern)
    assert message in str(failure.value)
