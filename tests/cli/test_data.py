"""`lipsformer data`: its commands, the form without one, and what `data check` prints, writes and exits with."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from lipsformer.images.samples import SAMPLES
from tests.support.command import Run, run

__all__ = ["run"]

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


def write(root: Path, *names: str) -> Path:
    """Writes photos; a name may say which, as in "train/apple/0.jpg=3"."""
    for number, name in enumerate(names):
        path, _, chosen = name.partition("=")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTOS[int(chosen or number)], root / path)
    return root


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write(tmp_path / "clean", "train/a/0.jpg", "train/b/0.jpg", "test/a/0.jpg", "test/b/0.jpg")


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    return write(tmp_path / "leaking", "train/a/0.jpg=0", "train/b/0.jpg=1", "test/a/0.jpg=0", "test/b/0.jpg=2")


@pytest.mark.parametrize(
    "words",
    [("friut", "--output", "OUT"), ("--output", "OUT", "friut"), ("-q", "friut", "--output", "OUT"),
     ("fetch", "friut", "--output", "OUT")],
)  # fmt: skip
def test_fetch_may_be_left_out(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    status, _, err = run("data", *(str(tmp_path / "out") if word == "OUT" else word for word in words))
    assert status == 2
    assert "did you mean 'fruit'" in err


@pytest.mark.parametrize("word", ["chek", "fetchh", "checks"])
def test_a_mistyped_command_is_no_dataset(run: Run, word: str) -> None:
    status, _, err = run("data", word, "photos")
    assert status == 2
    assert f"No such command '{word}'" in err


def test_strict_fails_on_leakage_alone(run: Run, clean: Path, leaking: Path) -> None:
    assert run("data", "check", clean, "--strict")[0] == 0
    assert run("data", "check", leaking)[0] == 0
    status, out, err = run("data", "check", leaking, "--strict")
    assert status == 1
    assert "1 cluster of 2 images, such as train/a/0.jpg = test/a/0.jpg" in out
    assert err.splitlines()[-1].startswith(f"lipsformer: {leaking}: 1 cluster of duplicates is in several splits")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("train/a/p1_0.jpg", "train/b/p2_0.jpg", "test/a/p1_1.jpg", "test/b/p3_0.jpg"), r"(p\d+)_"),
        (("train/a/7-x.jpg", "train/b/8-x.jpg", "val/a/9-x.jpg", "val/b/8-y.jpg"), r"/(\d+)-"),
        (("train/a/s/1.jpg", "train/b/t/1.jpg", "test/a/u/1.jpg", "test/b/s/2.jpg"), r"([^/]+)/[^/]+$"),
    ],
)
def test_groups_across_splits_are_leakage(run: Run, tmp_path: Path, names: tuple[str, ...], pattern: str) -> None:
    root = write(tmp_path / "photos", *names)
    status, out, _ = run("data", "check", root, "--strict")
    assert status == 0
    assert "Groups across splits         not checked: --group says what a group is" in out
    status, out, err = run("data", "check", root, "--strict", "--group", pattern, "--json")
    assert status == 1
    assert json.loads(out)["leakage"] == {"duplicates": 0, "groups": 1}
    assert "1 group is in several splits" in err


def test_a_group_may_be_a_column_of_a_table(run: Run, tmp_path: Path) -> None:
    root = write(tmp_path, "0.jpg", "1.jpg", "2.jpg", "3.jpg")
    rows = ["path,label,split,patient", "0.jpg,a,train,x", "1.jpg,b,train,y", "2.jpg,a,test,y", "3.jpg,b,test,z"]
    (root / "table.csv").write_text("\n".join(rows))
    _, out, _ = run("data", "check", root / "table.csv", "--group", "patient", "--json")
    found = json.loads(out)
    assert [image["image"] for image in found["groups_across_splits"]["y"]] == ["1.jpg", "2.jpg"]
    assert found["splits"] == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}


def test_the_report_is_one_page_without_other_files(run: Run, leaking: Path, tmp_path: Path) -> None:
    odd = "train/<b>&'\N{RIGHT-TO-LEFT OVERRIDE}\u2028{{7*7}}"
    shutil.copytree(leaking / "train" / "a", leaking / odd)
    status, out, _ = run("data", "check", leaking, "--output", tmp_path / "report")
    assert status == 0
    assert out.endswith(f"Report: {tmp_path / 'report' / 'index.html'}\n")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["check.json", "index.html"]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "{{7*7}}" in page  # a name is no template
    assert not {"\N{RIGHT-TO-LEFT OVERRIDE}", "\u2028"} & set(page)
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img ") > 0
    assert not re.search(r"<script|https?://|url\(|style=|\son\w+=", page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in page
    found = json.loads((tmp_path / "report" / "check.json").read_text())
    assert found["duplicates"][0]["label_conflict"]
    assert "exists already" in run("data", "check", leaking, "--output", tmp_path / "report")[2]
    assert "inside of the input" in run("data", "check", leaking, "--output", leaking / "report")[2]


def test_a_dataset_without_one_readable_image_is_reported_too(run: Run, tmp_path: Path) -> None:
    for name in ("a/0.jpg", "a/1.png", "b/0.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"no image")
    status, out, _ = run("data", "check", tmp_path / "photos", "--output", tmp_path / "report")
    assert status == 0
    assert re.search(r"Unreadable images +3 \(3 not an image\)", out)
    assert re.search(r"Classes under 10 images +2: a \(0 in all\), b \(0 in all\)", out)


@pytest.mark.parametrize("folders", [(), ("a",), ("train/a", "test/a")])
def test_a_dataset_without_images_is_refused(run: Run, tmp_path: Path, folders: tuple[str, ...]) -> None:
    (tmp_path / "photos").mkdir()
    for folder in folders:
        (tmp_path / "photos" / folder).mkdir(parents=True)
    status, out, err = run("data", "check", tmp_path / "photos")
    assert (status, out) == (2, "")
    assert "no images" in err
    assert len(err.splitlines()) == 1


def test_the_page_stays_small_however_many_are_found(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number in range(300):
        write(root, f"train/c{number % 100}/{number}.jpg={number % 3}")
    status, out, _ = run("data", "check", root, "--output", tmp_path / "report")
    assert status == 0
    assert "3 clusters of 300 images" in out
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * 3 * 8  # as conflicts and as duplicates
    assert "And 92 more" in page
