"""Training from a table is training from the folder that it describes, to the last bit; also its options and resume."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.datasets import DatasetOptions, open_dataset
from lipsformer.system.errors import InputError
from tests.support.tiny_training import assert_same, make_photos, train_tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))


def rows_of(root: Path) -> list[tuple[str, str, str]]:
    """Path, class and split of each photo, in no useful order."""
    paths = sorted(root.rglob("*.jpg"), key=lambda path: str(path)[::-1])
    return [(path.relative_to(root).as_posix(), path.parent.name, path.parent.parent.name) for path in paths]


def write_csv(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


@pytest.mark.slow
def test_a_folder_a_csv_and_parquet_files_train_the_same_model(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    rows = rows_of(photos)
    table = {name: [row[at] for row in rows] for at, name in enumerate(("path", "label", "split"))}
    pq.write_table(pa.table(table), photos / "paths.parquet")
    table["image"] = [{"bytes": (photos / row[0]).read_bytes(), "path": row[0]} for row in rows]
    del table["path"]
    pq.write_table(pa.table(table), tmp_path / "bytes.parquet")
    write_csv(photos / "labels.csv", rows)
    train_tiny(photos, tmp_path / "folder", epochs=2)
    for name, data in (
        ("csv", photos / "labels.csv"), ("paths", photos / "paths.parquet"), ("bytes", tmp_path / "bytes.parquet"),
    ):  # fmt: skip
        train_tiny(data, tmp_path / name, "workers=2", epochs=2)
        for kind in ("last", "best"):
            one, other = (load_checkpoint(tmp_path / run / f"{kind}.safetensors") for run in ("folder", name))
            assert all(
                left.equal(right)
                for left, right in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
            )
            assert one.classes == other.classes


def test_a_table_resumes_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    table = write_csv(photos / "labels.csv", rows_of(photos))
    train_tiny(table, tmp_path / "whole", epochs=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    newest = max((tmp_path / "part").glob("state-*"))
    newest.unlink()
    train_tiny(table, tmp_path / "part", epochs=None)
    assert_same(tmp_path / "whole", tmp_path / "part")
    newest = max((tmp_path / "part").glob("state-*"))
    newest.unlink()
    rows = rows_of(photos)
    relabeled = [
        (path, "Orange" if path == "train/Granny-Smith/1.jpg" else label, split) for path, label, split in rows
    ]
    for changed in (rows[1:], relabeled):
        write_csv(table, changed)
        with pytest.raises(InputError, match="made with another dataset"):
            train_tiny(table, tmp_path / "part", epochs=None)


def test_the_fold_is_recorded_and_resumed(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos") / "train"
    options = DatasetOptions(fold="2/3", group=r"(\d)\.jpg")
    train_tiny(photos, tmp_path / "run", epochs=2, options=options)
    held_out = open_dataset(photos, options).validation
    metrics = load_checkpoint(tmp_path / "run" / "last.safetensors").metrics
    assert (metrics["fold"], metrics["group"], metrics["images"]) == ("2/3", r"(\d)\.jpg", len(held_out))
    shutil.copytree(tmp_path / "run", tmp_path / "part")
    max((tmp_path / "part").glob("state-*")).unlink()
    train_tiny(photos, tmp_path / "part", epochs=None)  # without repeating the options
    assert_same(tmp_path / "run", tmp_path / "part")
    max((tmp_path / "part").glob("state-*")).unlink()
    with pytest.raises(InputError, match="made with another dataset"):
        train_tiny(photos, tmp_path / "part", epochs=None, options=DatasetOptions(fold="1/3"))
