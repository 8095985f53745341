"""The cached listing of a large folder equals a fresh one, whatever happened to the folder or to the cache."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsformer.datasets import open_dataset
from lipsformer.datasets.folders import folder
from lipsformer.datasets.folders.folder import FolderListing
from lipsformer.datasets.listing_cache import load_listing, save_listing, settled

FILES = ("a/1.jpg", "a/2.jpg", "a/deep/er/3.jpg", "b/4.jpg", "b c/5.png", "empty/readme.txt")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "CACHED_FROM", 0)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, cache: Path) -> Path:
    """A folder that was last changed a minute ago."""
    for file in FILES:
        path = tmp_path / "root" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    age(tmp_path / "root")
    return tmp_path / "root"


def age(root: Path, seconds: int = 60) -> None:
    for path in (root, *root.rglob("*/")):
        os.utime(path, (time.time() - seconds,) * 2)


def content(listing: FolderListing) -> tuple[object, ...]:
    names = [listing.names.text(index) for index in range(len(listing.names))]
    return listing.classes, listing.labels.tolist(), names


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The class folders that are walked from now on."""
    found = []
    walk = folder.walk

    def recorded(root: Path) -> object:
        found.append(root)
        return walk(root)

    monkeypatch.setattr(folder, "walk", recorded)
    return found


def test_reopening_reads_no_folder_and_gives_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = FolderListing.open(root)
    walked = scanned(monkeypatch)
    again = FolderListing.open(root)
    assert walked == []
    assert content(again) == content(fresh)
    assert content(fresh) == (
        ("a", "b", "b c", "empty"),
        [0, 0, 0, 1, 2],
        ["a/1.jpg", "a/2.jpg", "a/deep/er/3.jpg", "b/4.jpg", "b c/5.png"],
    )


def test_another_path_to_the_folder_finds_the_same_listing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderListing.open(root)
    walked = scanned(monkeypatch)
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    for other in (Path("root"), Path("link"), root / "a" / ".."):
        assert content(FolderListing.open(other)) == content(FolderListing.open(root))
    assert walked == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "b" / "9.jpg").touch(),
    "added deep": lambda root: (root / "a" / "deep" / "er" / "9.jpg").touch(),
    "removed": lambda root: (root / "a" / "1.jpg").unlink(),
    "renamed": lambda root: (root / "a" / "1.jpg").rename(root / "a" / "7.jpg"),
    "moved to another class": lambda root: (root / "a" / "1.jpg").rename(root / "b" / "1.jpg"),
    "class renamed": lambda root: (root / "a").rename(root / "z"),
    "class added": lambda root: shutil.copytree(root / "b", root / "new"),
    "empty class added": lambda root: (root / "new").mkdir(),
    "class removed": lambda root: shutil.rmtree(root / "b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FolderListing.open(root)
    CHANGES[change](root)
    after = FolderListing.open(root)
    assert content(after) != content(before)
    monkeypatch.setenv("LIPSFORMER_CACHE", str(root.parent / "fresh"))
    assert content(after) == content(FolderListing.open(root))


def test_a_change_is_seen_though_the_time_is_put_back(root: Path) -> None:
    FolderListing.open(root)
    before = (root / "a").stat()
    (root / "a" / "9.jpg").touch()
    os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "a/9.jpg" in content(FolderListing.open(root))[2]  # type: ignore[operator]


def test_a_link_that_leads_elsewhere_is_seen(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
        age(tmp_path / name)
    (tmp_path / "now").symlink_to("one")
    (root / "linked").symlink_to(tmp_path / "now")
    age(root)
    assert "linked/one.jpg" in content(FolderListing.open(root))[2]  # type: ignore[operator]
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("two")
    assert "linked/two.jpg" in content(FolderListing.open(root))[2]  # type: ignore[operator]


@pytest.mark.parametrize("place", ["late", "a/late"])
def test_a_link_whose_target_comes_later_is_seen(place: str, root: Path, tmp_path: Path) -> None:
    (root / place).symlink_to(tmp_path / "disk")
    age(root)
    before = FolderListing.open(root)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "8.jpg").touch()
    assert f"{place}/8.jpg" in set(content(FolderListing.open(root))[2]) - set(content(before)[2])  # type: ignore[call-overload]


def test_a_folder_that_has_just_changed_is_not_cached(root: Path, cache: Path) -> None:
    (root / "a" / "9.jpg").touch()
    FolderListing.open(root)
    assert not cache.exists()
    age(root)
    FolderListing.open(root)
    assert len(list((cache / "indexes").iterdir())) == 1


def test_two_seconds_settle_a_change() -> None:
    now = time.time_ns()
    assert settled([now - 2 * 10**9, 0], now)
    assert not settled([0, now - 2 * 10**9 + 1], now)
    assert not settled([now + 10**12], now)


def test_a_small_folder_is_not_cached(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "CACHED_FROM", 5)
    FolderListing.open(root)
    assert not cache.exists()
    monkeypatch.setattr(folder, "CACHED_FROM", 4)
    FolderListing.open(root)
    assert cache.exists()


def rewritten(path: Path, **changes: object) -> None:
    with np.load(path) as file:
        arrays: dict[str, object] = {**file, **changes}
    with path.open("wb") as target:
        np.savez(target, **{name: value for name, value in arrays.items() if value is not None})  # type: ignore[arg-type]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "foreign": lambda path: path.write_bytes(b"\x89PNG not an index" * 40),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"a/1.jpg", b"a/7.jpg")),
    "pickled": lambda path: rewritten(path, labels=np.array([0, 0, 0, 1, {}], dtype=object)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of another folder": lambda path: rewritten(path, title=np.frombuffer(b"else", np.uint8)),
    "without labels": lambda path: rewritten(path, labels=None),
    "a label too few": lambda path: rewritten(path, labels=np.zeros(4, np.int64)),
    "a label too high": lambda path: rewritten(path, labels=np.full(5, 4)),
    "a label too low": lambda path: rewritten(path, labels=np.full(5, -1)),
    "fractional labels": lambda path: rewritten(path, labels=np.zeros(5)),
    "names that overlap": lambda path: rewritten(path, names_ends=np.array([0, 9, 7, 21, 28, 37])),
    "names beyond the end": lambda path: rewritten(path, names_ends=np.array([0, 7, 14, 29, 36, 99])),
    "no folders": lambda path: rewritten(
        path, folders_ends=np.zeros(1, np.int64), folders_blob=np.zeros(0, np.uint8), states=np.zeros((0, 4), np.int64)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_listing_counts_as_missing(damage: str, root: Path, cache: Path) -> None:
    fresh = content(FolderListing.open(root))
    (path,) = (cache / "indexes").iterdir()
    before = path.read_bytes()
    DAMAGES[damage](path)
    assert content(FolderListing.open(root)) == fresh
    if damage != "a folder":
        assert len(path.read_bytes()) == len(before)  # written again
        assert content(FolderListing.open(root)) == fresh


def test_an_unwritable_cache_is_skipped(root: Path, cache: Path) -> None:
    cache.write_text("a file, no folder")
    fresh = content(FolderListing.open(root))
    assert fresh == content(FolderListing.open(root))
    assert cache.read_text() == "a file, no folder"


def test_listings_of_another_kind_are_not_used(tmp_path: Path, cache: Path) -> None:
    save_listing("one", tmp_path, {"numbers": np.arange(3)})
    kept = load_listing("one", tmp_path)
    assert kept is not None
    assert kept["numbers"].tolist() == [0, 1, 2]
    assert load_listing("two", tmp_path) is None
    assert load_listing("one", tmp_path / "elsewhere") is None


def test_names_that_are_not_utf8_are_kept(root: Path) -> None:
    with open(os.fsencode(root / "a") + b"/\xff.jpg", "wb"):  # noqa: PTH123
        pass
    age(root)
    fresh = content(FolderListing.open(root))
    assert "a/\udcff.jpg" in fresh[2]  # type: ignore[operator]
    assert content(FolderListing.open(root)) == fresh


def test_a_dataset_opens_the_same_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "val" / "a").mkdir(parents=True)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / "data" / split / name).mkdir(parents=True)
            (root / "data" / split / name / f"{split}.jpg").touch()
    age(root)
    fresh = open_dataset(root / "data")
    walked = scanned(monkeypatch)
    again = open_dataset(root / "data")
    assert walked == []
    for one, other in ((fresh.train, again.train), (fresh.validation, again.validation)):
        assert list(one.names()) == list(other.names())
        assert one.labels.tolist() == other.labels.tolist()
