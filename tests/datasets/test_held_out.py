"""Groups and folds: what is held out of the training split is whole, stratified, and the same every time."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import pytest

from lipsformer.datasets import HELD_OUT, DatasetOptions, ImageDataset, open_dataset, open_labeled
from lipsformer.system.errors import InputError


def plant(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def patients(root: Path, *, shuffled: bool = False) -> Path:
    """Forty patients with one to seven images each, of two classes; every fifth has both."""
    rng = random.Random(0)  # noqa: S311 - not a secret
    files = []
    for patient in range(40):
        for image in range(rng.randint(1, 7)):
            label = "ab"[(patient + (image if patient % 5 == 0 else 0)) % 2]
            files.append(f"{label}/patient{patient:02}_{image}.jpg")
    if shuffled:
        rng.shuffle(files)
    return plant(root, *files)


PATIENT = r"patient(\d+)"


def groups(data: ImageDataset) -> tuple[set[str], set[str]]:
    found = ({name.partition("_")[0][2:] for name in split.names()} for split in (data.train, data.validation))
    train, validation = found
    return train, validation


def test_groups_stay_whole_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    plain = open_dataset(patients(tmp_path / "one"))
    train, validation = groups(plain)
    assert train & validation  # the fault that --group is for
    data = open_dataset(tmp_path / "one", DatasetOptions(group=PATIENT))
    train, validation = groups(data)
    assert not train & validation
    assert len(train | validation) == 40
    assert 0.05 < len(data.validation) / (len(data.train) + len(data.validation)) < 0.15
    assert set(data.validation.labels) == {0, 1}
    assert data.validation.name == "held-out tenth of train, by group"
    again = open_dataset(patients(tmp_path / "two", shuffled=True), DatasetOptions(group=PATIENT))
    assert list(again.validation.names()) == list(data.validation.names())


@pytest.mark.parametrize("group", [None, PATIENT, r"^./(patient\d)"])
def test_folds_are_a_partition_and_stratified(group: str | None, tmp_path: Path) -> None:
    root = patients(tmp_path)
    everything = Counter(open_labeled(root, "ab").labels.tolist())
    held_out: list[str] = []
    for fold in range(1, 5):
        data = open_dataset(root, DatasetOptions(fold=f"{fold}/4", group=group))
        held_out += data.validation.names()
        assert data.validation.name.startswith(f"fold {fold}/4 of train")
        assert set(data.train.names()).isdisjoint(data.validation.names())
        found = Counter(data.validation.labels.tolist())
        slack = {None: 1, PATIENT: 7}.get(group, 60)
        assert all(abs(found[label] - everything[label] / 4) <= slack for label in (0, 1))
        if group == PATIENT:
            train, validation = groups(data)
            assert not train & validation
    assert sorted(held_out) == sorted(open_labeled(root, "ab").names())


def test_evaluation_uses_what_was_held_out(tmp_path: Path) -> None:
    root = patients(tmp_path)
    for options in (DatasetOptions(fold="2/5"), DatasetOptions(group=PATIENT), DatasetOptions()):
        data = open_dataset(root, options)
        labeled = open_labeled(root, "ba", HELD_OUT, options)
        assert list(labeled.names()) == list(data.validation.names())
        assert labeled.name == data.validation.name
    assert len(open_labeled(root, "ab", None, DatasetOptions(fold="2/5"))) < len(open_labeled(root, "ab")) / 3
    assert len(open_labeled(root, "ab", "all", DatasetOptions(fold="2/5"))) == len(open_labeled(root, "ab"))


def test_groups_by_a_column(tmp_path: Path) -> None:
    root = patients(tmp_path)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "Patient ID"])
        for path in root.glob("*/*.jpg"):
            writer.writerow([path.relative_to(root), path.parent.name, path.name[7:9]])
        (root / "a" / "one.jpg").touch()
        (root / "a" / "two.jpg").touch()
        writer.writerows([["a/one.jpg", "a", ""], ["a/two.jpg", "a", ""]])
    data = open_dataset(tmp_path / "labels.csv", DatasetOptions(group="Patient ID", fold="1/3"))
    train, validation = groups(data)
    assert not train & validation
    by_name = open_dataset(tmp_path / "labels.csv", DatasetOptions(group=r"(patient\d\d|one|two)", fold="1/3"))
    assert len(by_name.validation) == pytest.approx(len(data.validation), abs=7)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["a/1.jpg", "b/1.jpg"], {"group": "x(1"}, "neither a column nor a regular expression"),
        (["a/1.jpg", "b/1.jpg"], {"group": "patient"}, "needs a group in parentheses"),
        (["a/1.jpg", "b/1.jpg"], {"group": r"(\d\d)"}, "does not match the name 'a/1.jpg'"),
        (["a/1.jpg", "b/1.jpg"], {"group": r"(.)/"}, "one group per class leaves none to validate on"),
        (["a/1.jpg", "b/2.jpg"], {"group": r"(\d)", "fold": "1/2"}, "has all images of the class"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"], {"fold": "5/5"}, "leaves none to validate on"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"],
            {"fold": "1/2"},
            "has a val split, so --fold and --group have nothing to hold out",
        ),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], {"group": "(.)", "val_split": "val"}, "--val-split: "),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    files: list[str], options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as failure:
        open_dataset(plant(tmp_path, *files), DatasetOptions(**options))  # type: ignore[arg-type]
    assert message in str(failure.value)


@pytest.mark.parametrize("fold", ["", "2", "0/5", "6/5", "1/1", "a/b", "1/101", "-1/5", "1/5/5", "2/5\n"])
def test_folds_are_written_as_two_of_five(fold: str) -> None:
    with pytest.raises(InputError, match="write it as 2/5, the second of five folds"):
        DatasetOptions(fold=fold)


def test_options_survive_a_round_trip() -> None:
    options = DatasetOptions(fold="1/2", group="(.)", columns={"path": "a"}, images=Path("x"), classes=Path("y"))
    assert DatasetOptions.from_dict(options.to_dict()) == options
    assert DatasetOptions().to_dict() == {}
