"""Layouts of class folders and shards: read as they are meant, or refused with what they look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsformer.datasets import DatasetOptions, open_dataset, open_labeled
from lipsformer.system.errors import InputError
from tests.support.shards import members, write_shard


def plant(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def classes_in(*folders: str) -> list[str]:
    """Two images in each of two class folders of these folders."""
    return [f"{folder}/{label}/{number}.jpg" for folder in folders for label in "ab" for number in (1, 2)]


def refusal(root: Path, options: DatasetOptions | None = None) -> str:
    with pytest.raises(InputError) as failure:
        open_dataset(root, options)
    assert "\n" not in str(failure.value)
    return str(failure.value)


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("TRAIN", "Dev", "val"),
        ("trn", "hold-out", "test"),
        ("train_set", "test_set", "test"),
        ("train2017", "val2017", "val"),
        ("fruits_train", "fruits_test", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("dataset/train", "dataset/valid", "val"),
    ],
)
def test_splits_are_known_by_many_names(train: str, other: str, split: str, tmp_path: Path) -> None:
    data = open_dataset(plant(tmp_path, *classes_in(train, other)))
    assert data.classes == ("a", "b")
    assert data.validation.name == split
    assert {name.rpartition("/")[0].rpartition("/")[0].rpartition("/")[2] for name in data.train.names()} == {
        train.rpartition("/")[2]
    }
    assert not data.left_out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (classes_in("trainA", "testA"), "trainA/ look like splits"),
        (classes_in("train_v1", "test_v2"), "look like splits; rename them to"),
        (["train/1.jpg", "test/2.jpg"], "look like splits, not like classes"),
        (["Training/1.jpg", "Validation/2.jpg", "Testing/3.jpg"], "look like splits, not like classes"),
        (["mytrain/1.jpg", "mytest/2.jpg"], "look like splits, not like classes"),
        (classes_in("train", "val", "validation"), "look like the split val"),
        (classes_in("train", "val", "extra_test"), "extra_test: it looks like another split next to train/, val/"),
        (classes_in("train", "test", "more"), "more: it looks like another split"),
        ([f"{c}/{s}/1.jpg" for c in "ab" for s in ("train", "test")], "splits in them (a/test, a/train)"),
        ([f"{c}/{s}/1.jpg" for c in "ab" for s in ("Training", "dev")], "the class folders have splits in them"),
        (["a/1.jpg", "b/1.jpg", *(f"{i}.jpg" for i in range(5))], "5 images are outside of its class folders"),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(plant(tmp_path, *files))


@pytest.mark.parametrize("files", [["bullet_train/x/1.jpg", "bullet_train/x/2.jpg", "car/1.jpg", "car/2.jpg"],
                                   ["train/1.jpg", "train/2.jpg", "tram/1.jpg", "tram/2.jpg"],
                                   ["test/1.jpg", "test/2.jpg", "blank/1.jpg", "blank/2.jpg"]])  # fmt: skip
def test_classes_with_a_split_in_their_name_stay_classes(files: list[str], tmp_path: Path) -> None:
    assert len(open_dataset(plant(tmp_path, *files)).classes) == 2


def test_classes_from_says_that_folders_are_classes(tmp_path: Path) -> None:
    root = plant(tmp_path, *classes_in("Training", "Testing", "deep/er"))
    data = open_dataset(root, DatasetOptions(classes_from="."))
    assert data.classes == ("Testing", "Training", "deep")
    data = open_dataset(root, DatasetOptions(classes_from="Training"))
    assert data.classes == ("a", "b")
    assert all(name.startswith("Training/") for name in data.train.names())
    (first, *_) = open_dataset(root, DatasetOptions(classes_from="deep/er/")).train.names()
    assert first.startswith("deep/er/a/")
    for wrong in ("none", "../", "/tmp"):  # noqa: S108
        assert f"--classes-from {wrong}: no such folder in" in refusal(root, DatasetOptions(classes_from=wrong))


def test_classes_from_takes_splits_in_class_folders_as_one_set(tmp_path: Path) -> None:
    root = plant(tmp_path, *(f"{label}/{split}/1.jpg" for label in "ab" for split in ("train", "test")))
    data = open_dataset(root, DatasetOptions(classes_from="."))
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.validation) == 4


def test_a_split_can_be_named(tmp_path: Path) -> None:
    root = plant(tmp_path, *classes_in("train", "val", "fold_a", "fold_b"))
    data = open_dataset(root, DatasetOptions(train_split="fold_a", val_split="fold_b"))
    assert {name.partition("/")[0] for name in data.train.names()} == {"fold_a"}
    assert {name.partition("/")[0] for name in data.validation.names()} == {"fold_b"}
    assert {name.partition("/")[0] for name in open_labeled(root, "ab", "fold_b").names()} == {"fold_b"}
    assert {name.partition("/")[0] for name in open_labeled(root, "ab", "Validation").names()} == {"val"}
    assert "no split 'fold_c'; choose one of:" in refusal(root, DatasetOptions(train_split="fold_c"))


def test_what_is_next_to_splits_is_counted(tmp_path: Path) -> None:
    root = plant(tmp_path, *classes_in("train", "val"), "unlabeled/1.jpg", "unlabeled/2.jpg", "cover.jpg", "notes.txt")
    left_out = open_dataset(root).left_out
    assert left_out.count("stray") == 3
    assert left_out.count("extension") == 1
    assert open_labeled(root, "ab").left_out.count("stray") == 3


def test_a_model_that_knows_the_class_needs_no_second_folder(tmp_path: Path) -> None:
    root = plant(tmp_path, "a/day 1/1.jpg", "a/day 2/2.jpg")
    assert list(open_labeled(root, ["a", "b"]).names()) == ["a/day 1/1.jpg", "a/day 2/2.jpg"]


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("training-0", "testing-0"),
        ("trainset_00", "holdout_00"),
        ("x-TRN-1", "x-dev-1"),
        ("Training/0", "Evaluation/0"),
    ],
)
def test_shards_are_split_by_many_names(train: str, other: str, tmp_path: Path) -> None:
    write_shard(tmp_path / f"{train}.tar", members(a="x", b="y"))
    write_shard(tmp_path / f"{other}.tar", members(c="x"))
    data = open_dataset(tmp_path)
    assert (len(data.train), len(data.validation)) == (2, 1)


@pytest.mark.parametrize(("train", "other"), [("mytrain", "mytest"), ("trainA", "testA"), ("train0x", "valid0x")])
def test_shards_that_look_like_splits_are_not_one_set(train: str, other: str, tmp_path: Path) -> None:
    write_shard(tmp_path / f"{train}.tar", members(a="x", b="y"))
    write_shard(tmp_path / f"{other}.tar", members(c="x", d="y"))
    if "0" in train:
        assert len(open_dataset(tmp_path).validation) == 2  # "train0x" has the word "train"
    else:
        assert "its shards look like splits" in refusal(tmp_path)
