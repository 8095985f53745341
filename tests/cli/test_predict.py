"""`lipsformer predict`: files, folders, and bad ones among them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.predictor import Predictor
from tests.support.command import Run
from tests.support.images.files import png
from tests.support.shards import write_shard
from tests.support.trained import Trained

GOOD = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture(scope="module")
def best(trained: Trained) -> dict[Path, str]:
    """The label of each photo, predicted alone."""
    predictor = dataclasses.replace(load_predictor(trained.bundle), max_batch=1)
    return {photo: answer[0].label for photo, answer in zip(GOOD, predictor.predict(GOOD, 1), strict=True)}


def nested_nothing(path: Path) -> None:
    (path / "below" / ".hidden").mkdir(parents=True)
    shutil.copy(GOOD[0], path / "below" / ".hidden" / "photo.jpg")
    (path / "below" / "notes.txt").write_text("no image")


BAD: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("hello"),
    "cut off": lambda path: path.write_bytes(GOOD[0].read_bytes()[:4000]),
    "too many pixels": lambda path: path.write_bytes(png(60000, 60000, color=2)),
    "a link to itself": lambda path: path.symlink_to(path),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "an empty folder": lambda path: path.mkdir(),
    "a folder without images": nested_nothing,
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_file_costs_only_its_own_answer(
    kind: str, run: Run, trained: Trained, best: dict[Path, str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    BAD[kind](bad)
    status, out, err = run("predict", trained.bundle, GOOD[0], bad, GOOD[1], "--top-k", 1)
    assert status == 1
    assert out.splitlines()[::2] == [str(GOOD[0]), str(GOOD[1])]
    assert [line.split()[-1] for line in out.splitlines()[1::2]] == [best[photo] for photo in GOOD[:2]]
    *left_out, problem, summary = err.splitlines()
    assert all(" left out, " in line for line in left_out)
    assert len(left_out) == (2 if kind == "a folder without images" else 0)
    assert problem.startswith(f"{bad}: ")
    assert summary.startswith("lipsformer: 1 of 3 images cannot be classified")
    status, out, err_of_json = run("predict", trained.bundle, GOOD[0], bad, GOOD[1], "--json")
    assert (status, err_of_json) == (1, err)
    entries = {entry["image"]: entry for entry in json.loads(out)}
    assert entries.keys() == {str(GOOD[0]), str(bad), str(GOOD[1])}
    assert entries[str(bad)] == {"image": str(bad), "problem": problem}
    assert all(len(entries[str(photo)]["predictions"]) == 5 for photo in GOOD[:2])
    status, out, err = run("predict", trained.bundle, bad)  # alone, it is the one line
    assert (status, out, err.splitlines()) == (2, "", [*left_out, f"lipsformer: {problem}"])


def test_nothing_but_bad_files_is_bad_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    status, out, err = run("predict", trained.bundle, tmp_path / "a.jpg", tmp_path / "b.jpg", "--json")
    assert status == 2
    assert [entry["image"][-5:] for entry in json.loads(out)] == ["a.jpg", "b.jpg"]
    assert err.splitlines()[-1].startswith("lipsformer: none of the 2 images can be classified")


def test_a_folder_is_searched_as_datasets_are(
    run: Run, trained: Trained, best: dict[Path, str], tmp_path: Path
) -> None:
    names = ["a.jpg", "b/c/d.JPG", "b/e.jpeg", "linked/a.jpg"]
    for name, photo in zip(names[:3], GOOD, strict=False):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / name)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(GOOD[3], tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "b" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / ".thumbs.jpg").touch()
    (tmp_path / "photos" / "labels.csv").touch()
    status, out, err = run("predict", trained.bundle, tmp_path / "photos", GOOD[4], "--json", "--top-k", 1)
    assert status == 0
    assert sorted(line.removeprefix(f"{tmp_path / 'photos'}: 1 entry left out, ") for line in err.splitlines()) == [
        "hidden (the name starts with a dot): .thumbs.jpg",
        "linked to a folder that was read already: b/loop/",
        "with no image extension: labels.csv",
    ]
    assert [(entry["image"], entry["predictions"][0]["label"]) for entry in json.loads(out)] == [
        *((str(tmp_path / "photos" / name), best[photo]) for name, photo in zip(names, GOOD, strict=False)),
        (str(GOOD[4]), best[GOOD[4]]),
    ]


@pytest.mark.parametrize("name", ["two\nlines.jpg", "\x1b[31mred.jpg", os.fsdecode(b"\xff\xfe.jpg")])
def test_odd_names_stay_one_line_and_valid_json(name: str, run: Run, trained: Trained, tmp_path: Path) -> None:
    shutil.copy(GOOD[0], tmp_path / name)
    (tmp_path / f"bad-{name}").touch()
    status, out, err = run("predict", trained.bundle, tmp_path, "--top-k", 1)
    assert (status, len(out.splitlines()), len(err.splitlines())) == (1, 2, 2)
    assert (out + err).replace("\n", "").isprintable()
    entries = json.loads(run("predict", trained.bundle, tmp_path, "--json")[1])
    assert {entry["image"] for entry in entries} == {str(tmp_path / name), str(tmp_path / f"bad-{name}")}


def test_an_interruption_loses_no_answer(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Predictor.stream

    def interrupted(self: Predictor, *words: Any, **options: Any) -> Iterator[Any]:
        for name, answer in real(self, *words, **options):
            if name == str(GOOD[1]):
                raise KeyboardInterrupt
            yield name, answer

    monkeypatch.setattr(Predictor, "stream", interrupted)
    status, out, _ = run("predict", trained.bundle, *GOOD[:3], "--json")
    assert (status, [entry["image"] for entry in json.loads(out)]) == (130, [str(GOOD[0])])
    status, out, _ = run("predict", trained.bundle, *GOOD[:3])
    assert (status, out.splitlines()[0]) == (130, str(GOOD[0]))


def test_every_kind_of_source_is_printed_too(
    run: Run, trained: Trained, best: dict[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.tar", {"x.jpg": GOOD[0].read_bytes(), "y.jpg": b"hello"})
    (tmp_path / "names").write_bytes(b"\0".join(os.fsencode(photo) for photo in GOOD[1:3]))
    with (tmp_path / "names").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        pattern = GOOD[3].parent / f"{GOOD[3].name[:-5]}?.jpg"
        status, out, err = run("predict", trained.bundle, tmp_path / "a.tar", "-", pattern, "--top-k", 1)
    assert status == 1
    assert out.splitlines()[::2] == [f"{tmp_path}/a.tar:x.jpg", *map(str, GOOD[1:4])]
    assert [line.split()[-1] for line in out.splitlines()[1::2]] == [best[photo] for photo in GOOD[:4]]
    assert err.startswith(f"{tmp_path}/a.tar:y.jpg: not an image of a known format")
