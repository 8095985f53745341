"""Bulk prediction writes into object stores, over a real socket: whole or not at all, and resumable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import Part, merge_parts, stores, writers
from lipsformer.inference.bulk import bulk as module
from lipsformer.inference.bulk.output import Output
from lipsformer.system.errors import InputError
from tests.support.bulk import bulk, json_rows, watched
from tests.support.command import Run
from tests.support.http.object_store import ObjectStore, object_store
from tests.support.trained import Trained

KINDS = ("rows.parquet", "rows.jsonl", "rows.csv", "rows/")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    """An object store. The current folder is empty, and uploads have several parts."""
    stores._store.cache_clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(stores, "CHUNK", 1500)
    monkeypatch.setattr(writers, "ROWS_PER_FILE", 4)
    with object_store(monkeypatch) as server:
        yield server
    stores._store.cache_clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for photo in sorted(SAMPLES.glob("*.jpg"))[:6]:
        shutil.copy(photo, tmp_path / "photos")
    (tmp_path / "photos" / "empty.jpg").touch()
    return tmp_path / "photos"


def local(trained: Trained, tmp_path: Path, kind: str, photos: Path) -> dict[str, bytes]:
    """What a prediction into a local file or folder writes, as objects."""
    written = bulk(watched(trained.bundle)[0], tmp_path / "local" / kind, photos)
    files = sorted((tmp_path / "local" / "rows").glob("*"))
    return {f"out/{kind}": written} if written else {f"out/rows/{file.name}": file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", KINDS)
def test_the_objects_are_the_files_of_a_local_prediction(
    kind: str, store: ObjectStore, trained: Trained, photos: Path, tmp_path: Path, run: Run
) -> None:
    expected = local(trained, tmp_path, kind, photos)
    if kind == "rows/":
        assert len(expected) == 2
        expected["out/rows/_SUCCESS"] = b""
    output = f"s3://photos/out/{kind}"
    bulk(watched(trained.bundle)[0], output, photos)
    assert store.objects == expected
    assert store.begun > 0
    assert store.uploads == {}
    assert [*Path().iterdir()] == []
    status, _, err = run("predict", trained.bundle, photos, "--output", output)
    assert (status, f"{output.rstrip('/')}: exists already; choose another OUT" in err) == (2, True)


@pytest.mark.parametrize("kind", ["rows.parquet", "rows/"])
def test_a_failed_upload_leaves_nothing_to_read_and_is_repeated(
    kind: str, store: ObjectStore, trained: Trained, photos: Path, tmp_path: Path
) -> None:
    expected, output = local(trained, tmp_path, kind, photos), f"s3://photos/out/{kind}"
    store.most_parts = 1
    with pytest.raises(InputError, match=r"cannot be written \(.*403.*\); check the URL, the credentials and the net"):
        bulk(watched(trained.bundle)[0], output, photos)
    assert (store.objects, store.uploads) == ({}, {})
    assert [path.name for path in Path().iterdir()] == ["rows.parquet.partial" if "." in kind else "rows.partial"]
    store.most_parts = None
    store.denied = {"out/rows/part-00001.parquet"}  # a folder whose second file cannot be written
    predictor, runtime = watched(trained.bundle)
    if kind == "rows/":
        with pytest.raises(InputError, match=r"part-00001\.parquet: cannot be written"):
            bulk(predictor, output, photos)
        assert [*store.objects] == ["out/rows/part-00000.parquet"]
        store.denied = set()
    bulk(predictor, output, photos)
    assert runtime.images == 0
    assert {key: content for key, content in store.objects.items() if "_SUCCESS" not in key} == expected
    assert [*Path().iterdir()] == []


def test_a_kill_after_the_upload_is_not_an_existing_file(
    store: ObjectStore, trained: Trained, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.BulkState, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            bulk(watched(trained.bundle)[0], "s3://photos/rows.csv", photos)
    begun = store.begun
    predictor, runtime = watched(trained.bundle)
    bulk(predictor, "s3://photos/rows.csv", photos)
    assert (runtime.images, store.begun, [*Path().iterdir()]) == (0, begun, [])


def test_a_folder_with_other_objects_is_refused(store: ObjectStore, trained: Trained, photos: Path) -> None:
    store.objects = {"rows/mine.txt": b"", "rows.parquet/x": b""}
    with pytest.raises(InputError, match="s3://photos/rows: exists already"):
        bulk(watched(trained.bundle)[0], "s3://photos/rows/", photos)
    Output.of("s3://photos/row/").check_free()
    Output.of("s3://photos/rows.parquet").check_free()


def test_parts_of_many_machines_meet_in_the_store(
    store: ObjectStore, trained: Trained, photos: Path, tmp_path: Path, run: Run
) -> None:
    output, machines = "s3://photos/out/rows.jsonl", tmp_path / "machines"
    expected = local(trained, tmp_path, "rows.jsonl", photos)
    for number in (2, 1):
        bulk(
            watched(trained.bundle)[0], output, photos, part=Part(number=number, total=2), state=machines / str(number)
        )
        assert [*(machines / str(number)).iterdir()] == []
        if number == 2:
            status, _, err = run("predict", "--merge", output, f"{output}.part-*", "--state", machines)
            assert (status, "part 1/2 is missing" in err) == (2, True)
    assert sorted(store.objects) == [f"out/rows.jsonl.part-{number}-of-2" for number in (1, 2)]
    begun = store.begun
    predictor, runtime = watched(trained.bundle)
    bulk(predictor, output, photos, part=Part(number=1, total=2))  # a job that is repeated
    assert (runtime.images, store.begun) == (0, begun)
    with pytest.raises(InputError, match=rf"{output}.part-1-of-2: begun with other settings.*\(top_k 5, now 3\)"):
        bulk(predictor, output, photos, part=Part(number=1, total=2), top_k=3)
    status, _, err = run("predict", "--merge", output, f"{output}.part-*", "--state", machines)
    assert (status, f"{output}: 7 images: 6 ok, 1 empty\n" in err) == (0, True)
    assert store.objects["out/rows.jsonl"] == expected["out/rows.jsonl"]
    merge_parts(str(tmp_path / "merged.jsonl"), [f"{output}.part-1-of-2", f"{output}.part-2-of-2"])
    assert (tmp_path / "merged.jsonl").read_bytes() == expected["out/rows.jsonl"]
    assert [*Path().iterdir()] == []
    assert sorted(path.name for path in machines.rglob("*")) == ["1", "2"]
    for name in ("s3://photos/none", "s3://photos/none-*"):
        with pytest.raises(InputError, match="no such part; give the objects that --part wrote"):
            merge_parts(str(tmp_path / "out.csv"), [name])


def test_google_s_store_is_read_and_written(store: ObjectStore, trained: Trained, photos: Path, tmp_path: Path) -> None:
    expected = json_rows(local(trained, tmp_path, "rows.jsonl", photos)["out/rows.jsonl"])
    store.objects = {f"in/{photo.name}": photo.read_bytes() for photo in photos.iterdir()}
    output = "gs://photos/out/rows.jsonl"
    for number in (1, 2):
        bulk(watched(trained.bundle)[0], output, "gs://photos/in", part=Part(number=number, total=2))
    merge_parts(output, [f"{output}.part-*"])
    rows = json_rows(store.objects["out/rows.jsonl"])
    assert [row["name"] for row in rows] == [f"gs://photos/in/{Path(row['name']).name}" for row in expected]
    assert [row | {"name": ""} for row in rows] == [row | {"name": ""} for row in expected]
    assert (store.begun, store.uploads) == (3, {})  # both parts and the rows, in pieces


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("https://host/rows.csv", "--output https://host/rows.csv: a web server takes no rows"),
        ("s3://photos/rows.txt", "--output s3://photos/rows.txt: write a file that ends in"),
        ("s3://photos/", "--output s3://photos/: write a file that ends in"),
        ("s3://photos", "--output s3://photos: write a file that ends in"),
    ],
)
def test_what_cannot_be_written_is_one_line(store: ObjectStore, output: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        Output.of(output)
    assert str(refusal.value).startswith(message)


def test_a_local_state_may_lie_elsewhere(trained: Trained, photos: Path, tmp_path: Path) -> None:
    part, folder = Part(number=1, total=1), tmp_path / "states"
    seen: list[list[str]] = []
    predictor, _ = watched(trained.bundle, lambda _: seen.append(sorted(path.name for path in folder.iterdir())))
    assert bulk(predictor, tmp_path / "out" / "rows.csv", photos, part=part, state=folder)
    assert seen[0][0] == "rows.csv.partial"
    assert [*folder.iterdir()] == []
