"""Datasets in tables equal the folder they describe; what cannot be read is refused in one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lipsformer.datasets import DatasetOptions, Split, open_dataset, open_labeled, open_unlabeled, resolve_dataset
from lipsformer.images.open import ImageError, open_image
from lipsformer.system.errors import InputError
from tests.support.shards import gray_jpeg, write_shard

Row = Mapping[str, object]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of each of three classes, each of another gray level."""
    for at, label in enumerate(("ant", "bee", "c at")):
        for number in range(10):
            path = tmp_path / "data" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gray_jpeg(at * 80 + number * 5))
    return tmp_path / "data"


def rows_of(photos: Path) -> list[dict[str, str]]:
    """A row for each image, in no useful order."""
    found = [{"path": str(path.relative_to(photos)), "label": path.parent.name} for path in photos.glob("*/*.jpg")]
    return sorted(found, key=lambda row: row["path"][::-1])


def write_csv(path: Path, rows: Sequence[Row], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def write_parquet(path: Path, rows: Sequence[Row], features: Mapping[str, object] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in rows])
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7)
    return path


def packed(photos: Path, rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows with the images' bytes, as Hugging Face's `datasets` stores them."""
    return [
        {"image": {"bytes": (photos / str(row["path"])).read_bytes(), "path": row["path"]}}
        | {name: value for name, value in row.items() if name != "path"}
        for row in rows
    ]


def content(split: Split) -> list[tuple[str, str, bytes]]:
    return [
        (name, split.classes[label], split.open(index).tobytes())
        for index, (name, label) in enumerate(zip(split.names(), split.labels.tolist(), strict=True))
    ]


def refusal(path: Path, options: DatasetOptions | None = None) -> str:
    with pytest.raises(InputError) as failure:
        open_dataset(path, options)
    assert "\n" not in str(failure.value)
    assert str(path.name) in str(failure.value)
    return str(failure.value)


def bytes_only(photos: Path, rows: Sequence[Row]) -> list[dict[str, object]]:
    return [{"jpg": (photos / str(row["path"])).read_bytes(), **row} for row in rows]


KINDS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "csv": lambda photos, rows: write_csv(photos / "labels.csv", rows),
    "csv of Excel": lambda photos, rows: write_csv(photos / "labels.csv", rows, ";", "utf-8-sig"),
    "tsv": lambda photos, rows: write_csv(photos / "labels.TSV", rows, "\t"),
    "jsonl": lambda photos, rows: write_jsonl(photos / "labels.jsonl", rows),
    "parquet of paths": lambda photos, rows: write_parquet(photos / "labels.parquet", rows),
    "parquet of structs": lambda photos, rows: write_parquet(photos / "labels.parquet", packed(photos, rows)),
    "parquet of bytes": lambda photos, rows: write_parquet(photos / "x.parquet", bytes_only(photos, rows)),
    "windows": lambda photos, rows: write_csv(
        photos / "labels.csv", [{**row, "path": row["path"].replace("/", "\\")} for row in rows]
    ),
    "absolute": lambda photos, rows: write_csv(
        photos / "labels.csv", [{**row, "path": str(photos / row["path"])} for row in rows]
    ),
    "metadata": lambda photos, rows: (
        write_csv(
            photos / "metadata.csv",
            [{"file_name": row["path"], "category": row["label"], "text": "a, b"} for row in rows],
        ).parent
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_equals_the_folder_that_it_describes(kind: str, photos: Path) -> None:
    folder = open_dataset(photos)
    expected = [content(split) for split in (folder.train, folder.validation)]
    path = KINDS[kind](photos, rows_of(photos))
    for _ in range(2):  # the second time with the unpacked images of the cache
        table = open_dataset(resolve_dataset(str(path)))
        assert table.classes == folder.classes
        assert [content(split) for split in (table.train, table.validation)] == expected
        assert not table.left_out
    assert len(open_labeled(path, ["c at", "bee", "ant"])) == 30


def test_splits_of_a_column_equal_split_folders(photos: Path) -> None:
    for row in rows_of(photos):
        target = photos.parent / "split" / ("train" if "1" not in row["path"] else "val") / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((photos / row["path"]).read_bytes())
    root = photos.parent / "split"
    rows = []
    for path in root.glob("*/*/*.jpg"):
        subset = "Training" if path.parts[-3] == "train" else "dev"
        rows.append({"Image Path": str(path.relative_to(root)), "class": path.parent.name, "subset": subset})
    folder, table = open_dataset(root), open_dataset(write_csv(root / "all.csv", rows))
    assert table.validation.name == folder.validation.name == "val"
    assert content(table.train) == content(folder.train)
    assert content(table.validation) == content(folder.validation)
    parts = {
        split: write_csv(root / f"{split}.csv", [row for row in rows if row["subset"] == name])
        for split, name in (("train", "Training"), ("val", "dev"))
    }
    table = open_dataset(root / "{train,val}.csv")
    assert all(path.is_file() for path in parts.values())
    assert content(table.validation) == content(folder.validation)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
        ("my-train-0.parquet", "my-train-1.parquet", "my-test.parquet"),
    ],
)
def test_hugging_face_parquet_folders(names: tuple[str, ...], photos: Path, tmp_path: Path) -> None:
    labels = ["c at", "bee", "ant"]
    rows = [{"path": row["path"], "label": labels.index(row["label"])} for row in rows_of(photos)]
    features = {"image": {"_type": "Image"}, "label": {"names": labels, "_type": "ClassLabel"}}
    for number, name in enumerate(names):
        write_parquet(tmp_path / "hub" / name, packed(photos, rows[number * 10 : number * 10 + 10]), features)
    data = open_dataset(tmp_path / "hub")
    assert data.classes == ("c at", "bee", "ant")
    assert (len(data.train), len(data.validation), data.validation.name) == (20, 10, "test")
    everything = content(data.train) + content(data.validation)
    assert all(name.partition("/")[0] == label for name, label, _ in everything)
    assert data.train.where(0) == f"{data.train.where(0).rpartition(':')[0]}:{next(iter(data.train.names()))}"


def test_hugging_face_image_folders_with_metadata(photos: Path, tmp_path: Path) -> None:
    for split, pick in (("train", slice(0, 24)), ("validation", slice(24, 30))):
        rows = []
        for number, row in enumerate(rows_of(photos)[pick]):
            (tmp_path / "hub" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / split / f"{number}.jpg").write_bytes((photos / row["path"]).read_bytes())
            rows.append({"file_name": f"{number}.jpg", "label": row["label"]})
        write_jsonl(tmp_path / "hub" / split / "metadata.jsonl", rows)
    (tmp_path / "hub" / "train" / "unnamed.jpg").touch()
    data = open_dataset(tmp_path / "hub")
    assert (len(data.train), data.validation.name, len(data.validation)) == (24, "val", 6)
    assert next(iter(data.train.names())).startswith("train/")
    assert data.left_out.to_dict() == {"no_label": {"count": 1, "examples": ["train/unnamed.jpg"]}}


@pytest.mark.parametrize(
    ("labels", "options", "classes"),
    [
        ((0, 1, 2), {"classes": "ant\nbee\ncat"}, ("ant", "bee", "cat")),
        (("0", "2", "1"), {"classes": '["z", "y", "x", "w"]'}, ("z", "y", "x")),
        ((10, 9, 11), {}, ("class 9", "class 10", "class 11")),
        (("1.0", "2.0", "3.0"), {}, ("class 1", "class 2", "class 3")),
        (("x", "y", "z"), {"classes": "z\ny\nx"}, ("z", "y", "x")),
        (("NaN is a name", "y", "z"), {}, ("NaN is a name", "y", "z")),
    ],
)
def test_labels_by_name_or_number(
    labels: tuple[object, ...], options: dict[str, str], classes: tuple[str, ...], photos: Path
) -> None:
    rows = [{**row, "label": labels["abc".index(row["label"][0])]} for row in rows_of(photos)]
    found = {}
    if options:
        found["classes"] = photos.parent / "list"
        found["classes"].write_text(options["classes"])
    data = open_dataset(write_csv(photos / "labels.csv", rows), DatasetOptions(**found))  # type: ignore[arg-type]
    assert data.classes == classes


def test_columns_can_be_named_and_the_folder_of_the_images_too(photos: Path, tmp_path: Path) -> None:
    rows = [{"a": row["path"], "label": "wrong", "b": row["label"], "c": "train"} for row in rows_of(photos)]
    path = write_csv(tmp_path / "elsewhere" / "labels.csv", rows)
    columns = DatasetOptions.parse_columns(["path=a", "label=b", "split=c"])
    data = open_dataset(path, DatasetOptions(columns=columns, image_root=photos))
    assert data.classes == ("ant", "bee", "c at")
    assert "no column of images found among 'a', 'label', 'b', 'c'; name it with --column path=NAME" in refusal(path)
    wrong = DatasetOptions(columns={"label": "labels"})
    assert "--column label=labels: no such column; did you mean 'label'?" in refusal(path, wrong)
    assert "none of its images exists; the first is" in refusal(path, DatasetOptions(columns=columns))
    for text in ("label", "label=", "lable=b"):
        with pytest.raises(InputError, match="--column"):
            DatasetOptions(columns=DatasetOptions.parse_columns([text]))


def test_rows_are_left_out_for_a_reason(photos: Path) -> None:
    rows = [{**row, "split": "train" if "5" not in row["path"] else "val"} for row in rows_of(photos)]
    rows += [
        {"path": "ant/99.jpg", "label": "ant", "split": "train"},
        {"path": "bee/0.jpg", "label": "bee", "split": "train"},
        {"path": "bee/1.jpg", "label": "", "split": "train"},
        {"path": "", "label": "bee", "split": "val"},
    ]
    extra = photos / "bee" / "extra.jpg"
    extra.touch()
    rows.append({"path": "bee/extra.jpg", "label": "bee", "split": ""})
    left_out = open_dataset(write_csv(photos / "labels.csv", rows)).left_out
    assert {reason: left_out.count(reason) for reason in left_out.reasons} == {
        "missing": 2, "no_label": 1, "repeated": 1, "split": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "path,label\na.jpg,ant,more\n", "row 2 has 3 fields, the first row 2"),
        ("x.csv", 'path,label\n"a.jpg,ant\n', "malformed"),
        ("x.csv", "path,label\n", "no rows with images; add some"),
        ("x.csv", "", "no column of labels found among"),
        ("x.csv", "ant/0.jpg,ant\n", "the first row has the names"),
        ("x.csv", "path,label\nhttps://host/a.jpg,ant\n", "row 2 names the URL https://host/a.jpg"),
        ("x.csv", "path,label\nant/0.jpg,ant\nant/0.jpg,bee\n", "ant/0.jpg twice, with the labels 'ant' and 'bee'"),
        ("x.csv", "path,label,split\nant/0.jpg,ant,train\nant/0.jpg,ant,test\n", "with the splits 'train' and 'test'"),
        ("x.csv", "path,label\nant/0.jpg,ant\n", "1 class found, at least 2 are needed"),
        ("x.csv", "path,label,split\nant/0.jpg,ant,a\nbee/0.jpg,bee,b\n", "has a, b but no train split"),
        ("x.jsonl", "[1]\n", "line 1 is not an object"),
        ("x.jsonl", '{"path": "a.jpg", "label": "x"}\n{"path\n', "line 2 is not JSON"),
        ("x.jsonl", '{"path": "ant/0.jpg", "label": ["x", "y"]}\n', "line 1: list found instead of one name or number"),
        ("x.parquet", "no parquet", "not a readable Parquet file"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(name: str, text: str, message: str, photos: Path) -> None:
    (photos / name).write_text(text)
    assert message in refusal(photos / name)


def test_a_table_that_is_not_utf8_is_refused(photos: Path) -> None:
    for content in (b"path,label\nant/0.jpg,caf\xe9\n", b"\xff\xfep\0a\0t\0h\0", b"\x89PNG\r\n\x1a\n"):
        (photos / "x.csv").write_bytes(content)
        assert "not UTF-8" in refusal(photos / "x.csv")


def test_images_of_any_dataset_without_their_labels(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    write_shard(tmp_path / "shards" / "train-0.tar", {"1.jpg": gray_jpeg(30), "1.cls": b"x"})
    write_shard(tmp_path / "shards" / "test-0.tar", {"2.jpg": gray_jpeg(60), "2.cls": b"y"})
    write_parquet(tmp_path / "hub" / "train-0.parquet", packed(photos, rows[:12]))
    for data, count in (
        (photos, 30), (write_csv(photos / "labels.csv", rows), 30), (tmp_path / "shards", 2), (tmp_path / "hub", 12),
    ):  # fmt: skip
        found = open_unlabeled(data)
        assert len(found.names) == len(set(found.names)) == count
        assert open_image(found.encoded(count - 1)).size == (8, 8)
    with pytest.raises(InputError, match="no images found"):
        open_unlabeled(tmp_path / "cache")


def test_missing_tables_and_pyarrow_are_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("none.csv", "none.jsonl", "{a,b}.tsv"):
        with pytest.raises(InputError, match="no such table"):
            open_dataset(resolve_dataset(str(photos / name)))
    path = write_parquet(photos / "labels.parquet", rows_of(photos))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pyarrow is not installed; pip install 'lipsformer[data]'" in refusal(path)


def test_unpacked_images_are_read_again_if_the_file_changes(photos: Path, cache: Path) -> None:
    rows = rows_of(photos)
    path = write_parquet(photos / "labels.parquet", packed(photos, rows))
    before = open_dataset(path)
    (unpacked,) = (cache / "parquet").iterdir()
    unpacked.write_bytes(b"cut")
    with pytest.raises(InputError, match=r"labels\.parquet:.* is shorter than when it was listed"):
        before.train.open(3)
    assert content(open_dataset(path).train) == content(open_dataset(photos).train)
    write_parquet(path, packed(photos, rows[:20]))
    assert len(open_labeled(path, before.classes)) == 20
    assert len([*(cache / "parquet").iterdir()]) == 1
    write_parquet(path, [{"image": {"bytes": b"no image", "path": None}, "label": label} for label in "aabb"])
    data = open_dataset(path)
    assert list(data.train.names()) == ["labels.parquet:0000000", "labels.parquet:0000002"]
    with pytest.raises(ImageError, match=r"labels\.parquet:labels\.parquet:0000000: not an image"):
        data.train.open(0)
