"""Class folders: what is found, what is held out, and which errors are reported."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer.datasets import Split, find_images, open_dataset, open_labeled
from lipsformer.images.open import ImageError
from lipsformer.system.errors import InputError


def plant(root: Path, *files: str) -> Path:
    """Makes empty files: names are all that these functions read."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_splits_and_labels(tmp_path: Path) -> None:
    root = plant(
        tmp_path, "train/cat/1.jpg", "train/ant/2.PNG", "train/ant/deep/3.webp", "val/cat/4.jpg", "test/ant/5.jpg"
    )
    data = open_dataset(root)
    assert data.classes == ("ant", "cat")
    assert list(data.train.names()) == ["train/ant/2.PNG", "train/ant/deep/3.webp", "train/cat/1.jpg"]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert (data.validation.name, data.validation.labels.tolist()) == ("val", [1])


@pytest.mark.parametrize(("folder", "name"), [("test", "test"), ("valid", "val"), ("Validation", "val")])
def test_what_is_validated_on(folder: str, name: str, tmp_path: Path) -> None:
    data = open_dataset(plant(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{folder}/b/3.jpg"))
    assert (data.validation.name, data.validation.labels.tolist()) == (name, [1])


def test_a_tenth_of_each_class_is_held_out_by_name(tmp_path: Path) -> None:
    files = [f"{label}/{i}.jpg" for label, count in (("a", 40), ("b", 3), ("c", 1)) for i in range(count)]
    data = open_dataset(plant(tmp_path / "one", *files))
    counts = [np.bincount(split.labels, minlength=3).tolist() for split in (data.train, data.validation)]
    assert counts == [[36, 2, 1], [4, 1, 0]]
    assert set(data.train.names()).isdisjoint(data.validation.names())
    again = open_dataset(plant(tmp_path / "two", *reversed(files)))
    assert list(data.validation.names()) == list(again.validation.names())
    more = open_dataset(plant(tmp_path / "two", *(f"d/{i}.jpg" for i in range(20))))
    assert set(data.validation.names()) < set(more.validation.names())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.jpg"], "train: 1 class found, at least 2 are needed; add images as "),
        (["1.jpg", "2.jpg"], "0 classes found, at least 2 are needed"),
        (["a/1.jpg", "b/notes.txt"], "/b: no images; add some or remove this class"),
        (["test/a/1.jpg", "test/b/1.jpg"], "has test but no train split; add "),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/x.txt"], "val: no images; add some or remove this split"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/Bee/2.jpg"],
            "val/Bee/2.jpg: unknown class 'Bee'; rename or remove the class (known: a, b)",
        ),
        (["a/1.jpg", "b/1.jpg"], "one image per class leaves none to validate on"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_reported(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as failure:
        open_dataset(plant(tmp_path, *files))
    assert message in str(failure.value)
    assert str(failure.value).startswith(str(tmp_path))


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    for use in (open_dataset, find_images, lambda root: open_labeled(root, ["a"])):
        with pytest.raises(InputError, match="none: no such folder"):
            use(tmp_path / "none")


def test_an_empty_folder_of_an_unknown_class_is_no_error(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/c/readme.txt")
    assert len(open_dataset(root).validation) == 1


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    root = plant(tmp_path, "b.jpg", "a.TIFF", ".hidden.jpg", "._b.jpg", "notes.txt", ".git/c.jpg", "deep/.x/d.jpg")
    assert relative(root, find_images(root)) == ["a.TIFF", "b.jpg"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/1.jpg", "root/a/2.jpg")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    found = find_images(tmp_path / "root")
    assert sorted(path.name for path in found) == ["1.jpg", "2.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for label in (b"a", b"b"):
        folder = os.fsencode(tmp_path) + b"/" + label
        os.mkdir(folder)  # noqa: PTH102 - a name of bytes
        for name in (b"\xff1.jpg", b"\xfe2.jpg"):
            with open(folder + b"/" + name, "wb"):  # noqa: PTH123
                pass
    data = open_dataset(tmp_path)
    assert (len(data.train), len(data.validation)) == (2, 2)


@pytest.mark.parametrize(
    ("files", "split", "name", "expected"),
    [
        (["train/a/1.jpg", "val/a/2.jpg", "test/b/3.jpg"], None, "test", ["test/b/3.jpg"]),
        (["train/a/1.jpg", "val/a/2.jpg"], None, "val", ["val/a/2.jpg"]),
        (["train/a/1.jpg"], None, "train", ["train/a/1.jpg"]),
        (["a/1.jpg", "b/2.jpg"], None, "all", ["a/1.jpg", "b/2.jpg"]),
        (["train/a/1.jpg", "test/b/3.jpg"], "train", "train", ["train/a/1.jpg"]),
        (["train/a/1.jpg", "valid/b/3.jpg"], "validation", "val", ["valid/b/3.jpg"]),
    ],
)
def test_what_is_evaluated_on(
    files: list[str], split: str | None, name: str, expected: list[str], tmp_path: Path
) -> None:
    found = open_labeled(plant(tmp_path, *files), ["b", "a"], split)
    assert found.name == name
    assert list(found.names()) == expected
    assert [("b", "a")[label] for label in found.labels] == [Path(name).parent.name for name in found.names()]


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["test/a/1.jpg"], "val", "no split 'val'; choose one of: test"),
        (["a/1.jpg"], "val", "no split 'val'; choose one of: none"),
        (["z/1.jpg"], None, "z/1.jpg: unknown class 'z'"),
        (["a/1.txt"], None, "no images; add some as "),
    ],
)
def test_what_cannot_be_evaluated_on_is_reported(
    files: list[str], split: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as failure:
        open_labeled(plant(tmp_path, *files), ["a", "b"], split)
    assert message in str(failure.value)


def test_folders_are_listed_as_paths_sort(tmp_path: Path) -> None:
    root = plant(tmp_path, "a/c d/1.jpg", "a/c/2.jpg", "a/c.jpg", "a/c-d.jpg", "a b/3.jpg")
    files = sorted(path for path in root.rglob("*.jpg"))
    assert find_images(root) == files
    assert [root / name for name in open_dataset(root).train.names()] == [
        path for path in files if path in {root / name for name in open_dataset(root).train.names()}
    ]


def test_a_split_opens_selects_and_travels(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a/1.png", "train/a/2.png", "train/b/3.png", "val/b/4.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), number).save(tmp_path / name)
    split = open_dataset(tmp_path).train
    chosen: Split = pickle.loads(pickle.dumps(split.select(np.array([2, 0]))))  # noqa: S301 - our own
    assert list(chosen.names()) == ["train/b/3.png", "train/a/1.png"]
    assert chosen.labels.tolist() == [1, 0]
    assert [chosen.where(index) for index in range(2)] == [str(tmp_path / name) for name in chosen.names()]
    assert [chosen.open(index).getpixel((0, 0)) for index in range(2)] == [2, 0]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    split = open_dataset(plant(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")).train
    with pytest.raises(ImageError, match=r"train/a/1\.jpg: empty") as failure:
        split.open(0)
    assert str(failure.value).startswith(split.where(0))
    (tmp_path / "train" / "b" / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"train/b/2\.jpg: no such image file"):
        split.open(1)
