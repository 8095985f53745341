"""Bulk prediction: a row with the right status for every image, in every kind of file."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lipsformer import load_predictor
from lipsformer.images.open import open_image
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import BulkOptions, Part, engine, predict_to_file, writers
from lipsformer.system.errors import InputError, LipsFormerError
from tests.support.bulk import bulk, json_rows, watched
from tests.support.command import Run
from tests.support.images.odd import collection
from tests.support.models.acceptance import ACCEPTED, LOW_SCORE, UNFAMILIAR
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of photos with three bad files among them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in PHOTOS[:9]:
        shutil.copy(photo, folder)
    (folder / "empty.jpg").touch()
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / 'cut, "off".jpg').write_bytes(PHOTOS[0].read_bytes()[:4000])
    return folder


@pytest.mark.slow
def test_each_image_of_the_odd_collection_has_its_row(trained: Trained, tmp_path: Path) -> None:
    odd = collection()
    names = []
    for number, image in enumerate(odd):
        (tmp_path / image.name).write_bytes(image.content)
        names += [tmp_path / image.name, PHOTOS[number % len(PHOTOS)]]
    rows = json_rows(
        bulk(load_predictor(trained.bundle), tmp_path / "rows.jsonl", *names, tmp_path / "none.jpg", decoders=2)
    )
    assert [row["name"] for row in rows] == [*map(str, names), str(tmp_path / "none.jpg")]
    wrong = [
        (image.name, row["status"])
        for image, row in zip(odd, rows[:-1:2], strict=True)
        if {"ok": "image"}.get(row["status"], row["status"]) not in image.allowed
    ]
    assert wrong == []
    assert {row["status"] for row in rows[:-1:2]} >= {"ok", "empty", "not_an_image", "damaged", "too_many_pixels"}
    assert {row["status"] for row in rows[1::2]} == {"ok"}
    assert rows[-1]["status"] == "missing"
    assert all((row["status"] == "ok") == (row["detail"] is None) == (len(row["top_k"]) == 5) for row in rows)


def test_all_kinds_of_files_agree_with_each_other_and_with_the_command(
    mixed: Path, trained: Trained, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "parts"
    outputs = [tmp_path / "rows.jsonl", tmp_path / "rows.csv", tmp_path / "rows.parquet", folder]
    for output in outputs:
        words = ["--output", f"{output}/" if output == folder else output, "--features", "--top-k", 3]
        status, out, err = run("predict", trained.bundle, mixed, *words)
        assert (status, out) == (0, "")
        assert "12 images: 9 ok, 1 damaged, 1 empty, 1 missing; " in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "parts",
        "photos",
        "rows.csv",
        "rows.jsonl",
        "rows.parquet",
    ]
    rows = json_rows(outputs[0].read_bytes())
    assert [*rows[0]] == [*writers.COLUMNS, "features"]
    assert pq.read_table(outputs[2]).to_pylist() == rows
    assert pq.read_table(folder).to_pylist() == rows
    with outputs[1].open(newline="") as file:
        table = [{name: _parsed(name, value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert table == rows

    answers = {answer["image"]: answer for answer in json.loads(run("predict", trained.bundle, mixed, "--json")[1])}
    assert [*answers] == [row["name"] for row in rows]
    for row in rows:
        answer = answers[row["name"]]
        if row["status"] != "ok":
            assert answer["problem"] == f"{row['name']}: {row['detail']}"
            assert [value for name, value in row.items() if name not in ("name", "status", "detail", "top_k")] == [
                None
            ] * 8
            continue
        assert (row["width"], row["height"]) == open_image(Path(row["name"])).size
        assert {name: row[name] for name in ("label", "index", "score")} == row["top_k"][0]
        for one, other in zip(row["top_k"], answer["predictions"], strict=False):
            assert (one["label"], one["index"]) == (other["label"], other["index"])
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def _parsed(name: str, value: str) -> Any:
    """A cell of a CSV as the value that it stands for."""
    if value == "" or name in ("name", "status", "detail", "label"):
        return value or None
    return json.loads(value)


def test_features_are_float32_lists_of_fixed_size(mixed: Path, trained: Trained, tmp_path: Path) -> None:
    predictor = load_predictor(trained.bundle)
    bulk(predictor, tmp_path / "rows.parquet", mixed, features=True)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[128]"
    photo = table.column("name").to_pylist().index(str(mixed / PHOTOS[3].name))
    outputs = predictor.runtime.infer(np.stack([predictor.prepare(PHOTOS[3])]))
    assert outputs.features is not None
    assert np.allclose(table.column("features")[photo].as_py(), outputs.features[0], atol=1e-5)
    metadata = json.loads(table.schema.metadata[b"lipsformer"])
    assert (metadata["model"], metadata["top_k"], metadata["features"]) == ("bundle", 5, True)
    assert len(metadata["model_sha256"]) == 64


def test_no_image_at_all_gives_an_empty_table(trained: Trained, tmp_path: Path) -> None:
    nothing = tmp_path / "names"
    nothing.touch()
    with nothing.open() as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        bulk(load_predictor(trained.bundle), tmp_path / "rows.parquet", "-", features=True)
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 0


def test_whether_an_answer_is_accepted(choosy: Trained, tmp_path: Path) -> None:
    photos = [ACCEPTED, LOW_SCORE, UNFAMILIAR]
    rows = json_rows(bulk(load_predictor(choosy.bundle), tmp_path / "rows.jsonl", *photos, copy_to=tmp_path / "sorted"))
    assert [row["accepted"] for row in rows] == [True, False, False]
    assert sorted(path.name for path in (tmp_path / "sorted" / "_not_accepted").iterdir()) == sorted(
        photo.name for photo in photos[1:]
    )


def test_odd_names_are_kept(trained: Trained, tmp_path: Path) -> None:
    for name in ("=1+1.jpg", "two\nlines.jpg", "naïve—写真.jpg", os.fsdecode(b"\xff.jpg")):
        shutil.copy(PHOTOS[0], tmp_path / name)
    expected = [f"{tmp_path}/{name}" for name in ("=1+1.jpg", "naïve—写真.jpg", "two\nlines.jpg", "\\udcff.jpg")]
    predictor = load_predictor(trained.bundle)
    bulk(predictor, tmp_path / "rows.csv", tmp_path)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == expected
    bulk(predictor, tmp_path / "rows.parquet", tmp_path)
    assert pq.read_table(tmp_path / "rows.parquet").column("name").to_pylist() == expected


def test_too_many_failures_stop_it_and_more_are_allowed_later(mixed: Path, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    whole = bulk(watched(trained.bundle)[0], tmp_path / "whole.jsonl", mixed, mixed, max_failures=6)
    with pytest.raises(engine.TooManyFailuresError, match=r"stopped, \d images refused, over --max-failures 2") as stop:
        bulk(watched(trained.bundle)[0], output, mixed, mixed, max_failures=2)
    assert stop.value.exit_code == 1
    assert not output.exists()
    with pytest.raises(engine.TooManyFailuresError):
        bulk(watched(trained.bundle)[0], output, mixed, mixed, max_failures=1)
    predictor, runtime = watched(trained.bundle)
    assert bulk(predictor, output, mixed, mixed) == whole
    assert runtime.images < 18


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "rows.txt"], "--output rows.txt: write a file that ends in .parquet, .jsonl, .csv, or a folder"),
        (["--output", "rows.csv", "--part", "0/3"], "--part 0/3: the part must be between 1 and 3"),
        (["--output", "rows.csv", "--part", "4/3"], "--part 4/3: the part must be between 1 and 3"),
        (["--output", "rows.csv", "--part", "1of3"], "--part 1of3: write it as K/N, as in 3/16"),
        (["--output", "rows.csv", "--top-k", "0"], "--top-k 0: at least 1 is needed"),
        (["--output", "rows.csv", "--max-failures", "-1"], "--max-failures -1: give 0 or more"),
        (["--output", "rows.csv", "--json"], "--json: not with --output; let OUT end in .jsonl"),
        (["--features"], "--features: only with --output OUT"),
        (["--part", "1/2"], "--part: only with --output OUT"),
        (["--max-failures", "0"], "--max-failures: only with --output OUT"),
        (["--copy-to", "sorted"], "--copy-to: only with --output OUT"),
        (["--state", "states"], "--state: only with --output OUT"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str], message: str, run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("predict", trained.bundle, PHOTOS[0], *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"lipsformer: {message}")
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_used_is_one_line(
    trained: Trained, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = run("predict", trained.bundle)
    assert (status, "no SOURCE given" in err) == (2, True)
    predictor = load_predictor(trained.bundle)
    output = tmp_path / "rows.csv"
    output.touch()
    with pytest.raises(InputError, match=r"rows\.csv: exists already; choose another OUT or remove it first"):
        bulk(predictor, output, PHOTOS[0])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        bulk(predictor, tmp_path / "file" / "rows.csv", PHOTOS[0])
    runtime = watched(trained.bundle)[1]
    runtime.channels = None
    with pytest.raises(InputError, match=r"--features: .* gives no features; export it again"):
        bulk(dataclasses.replace(predictor, runtime=runtime), tmp_path / "a.csv", PHOTOS[0], features=True)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"a.parquet: pyarrow is not installed; pip install 'lipsformer\[data\]'"):
        bulk(predictor, tmp_path / "a.parquet", PHOTOS[0])
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(InputError, match="need Linux"):
        bulk(predictor, tmp_path / "a.csv", PHOTOS[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "rows.csv"]


def test_decoders_that_do_not_start_are_one_line(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsformer.images.decoding.decoder.PROGRAM", tmp_path / "none.py")
    options = BulkOptions(model="bundle", sources=(str(PHOTOS[0]),), part=Part())
    with pytest.raises(LipsFormerError, match="a decoder process cannot be started"):
        predict_to_file(load_predictor(trained.bundle), options, str(tmp_path / "rows.csv"))


def test_a_folder_has_files_of_a_fixed_number_of_rows(
    mixed: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "ROWS_PER_FILE", 6)
    monkeypatch.setattr(writers, "GROUP", 4)
    monkeypatch.setattr(writers, "PIECE", 2)
    bulk(load_predictor(trained.bundle), tmp_path / "rows", mixed, features=True)
    files = sorted((tmp_path / "rows").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet"]
    assert [pq.ParquetFile(file).metadata.num_rows for file in files] == [6, 6]
    assert pq.ParquetFile(files[0]).num_row_groups == 2
