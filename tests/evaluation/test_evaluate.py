"""`lipsformer eval`: every figure from what prediction says, photos that cannot be read, and the report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lipsformer import cli, load_checkpoint, load_predictor, save_checkpoint
from lipsformer.datasets import open_labeled
from lipsformer.evaluation.evaluate import Evaluation, evaluate, format_evaluation
from lipsformer.system.errors import InputError
from tests.support.trained import Trained

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: (status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lipsformer", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def damaged(trained: Trained, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the photos with three that cannot be read, and these in order."""
    root = tmp_path / "photos"
    shutil.copytree(trained.data, root)
    first, *_, last = trained.classes
    cut, text, empty = root / first / "cut.jpg", root / first / "text.png", root / last / "empty.webp"
    cut.write_bytes((root / first / f"{first}.jpg").read_bytes()[:4000])
    text.write_text("not a photo")
    empty.touch()
    return root, [str(cut), str(text), str(empty)]


def found(trained: Trained, data: Path | None = None, **changes: Any) -> Evaluation:
    predictor = dataclasses.replace(load_predictor(trained.bundle), **changes)
    return evaluate(predictor, open_labeled(data or trained.data, trained.classes))


def test_the_json_holds_what_prediction_says(run: Run, trained: Trained) -> None:
    status, out, err = run(trained.checkpoint, trained.data, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out, parse_constant=pytest.fail)
    photos = [trained.data / name / f"{name}.jpg" for name in trained.classes]
    answers = load_predictor(trained.checkpoint).predict(photos, 14)
    scores = [p.score for answer, name in zip(answers, trained.classes, strict=True) for p in answer if p.label == name]
    right = {name: answer[0].label == name for answer, name in zip(answers, trained.classes, strict=True)}
    assert report["loss"] == pytest.approx(-np.log(scores).mean(), rel=1e-4)
    assert report["top1"] == pytest.approx(sum(right.values()) / 14)
    assert (report["images"], report["unreadable"], report["unreadable_files"]) == (14, 0, [])
    assert (report["split"], report["provider"]) == ("all", "torch-cpu")
    assert 0 < report["calibration_error"] < 1
    assert report["images_per_second"] > 0
    assert [row["class"] for row in report["classes"]] == list(trained.classes)
    for row, answer in zip(report["classes"], answers, strict=True):
        assert (row["images"], row["accuracy"]) == (1, float(right[row["class"]]))
        assert row["confused_with"] == (None if right[row["class"]] else answer[0].label)


@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_damaged_photos_are_left_out_and_named(
    trained: Trained, damaged: tuple[Path, list[str]], max_batch: int
) -> None:
    whole, partly = found(trained), found(trained, damaged[0], max_batch=max_batch)
    assert [file for file, _ in partly.unreadable] == damaged[1]
    assert partly.predictions.images == whole.predictions.images == 14
    # Batches of another size round otherwise, in the last digits.
    assert (partly.predictions.top1, partly.predictions.top5) == (whole.predictions.top1, whole.predictions.top5)
    assert partly.predictions.mean_loss == pytest.approx(whole.predictions.mean_loss, rel=1e-5)
    assert partly.predictions.per_class() == whole.predictions.per_class()
    report = partly.to_dict()
    assert (report["images"], report["unreadable"], report["unreadable_files"]) == (14, 3, damaged[1])


def test_a_person_is_told_of_damaged_photos(run: Run, trained: Trained, damaged: tuple[Path, list[str]]) -> None:
    status, out, _ = run(trained.bundle, damaged[0])
    assert status == 0
    assert "3 more could not be read and were skipped:" in out
    assert f"  {damaged[1][0]}: damaged or cut off" in out
    for number in range(5):
        (damaged[0] / trained.classes[0] / f"more{number}.jpg").touch()
    assert "and 5 others; --json lists all" in run(trained.bundle, damaged[0])[1]


@pytest.mark.parametrize("damage", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_a_class_without_a_readable_photo_ends_with_status_1(
    run: Run, trained: Trained, tmp_path: Path, damage: bytes
) -> None:
    shutil.copytree(trained.data, tmp_path / "photos")
    for name in trained.classes[1:3]:
        (tmp_path / "photos" / name / f"{name}.jpg").write_bytes(damage)
    status, out, err = run(trained.bundle, tmp_path / "photos", "--json", "--output", tmp_path / "report")
    assert status == 1
    assert json.loads(out)["lost_classes"] == list(trained.classes[1:3])
    assert f"no image can be read of 2 of its classes ('{trained.classes[1]}', " in err
    assert (tmp_path / "report").is_dir()


@pytest.mark.parametrize("place", [".", "report", "deep/er"])
def test_a_report_inside_of_the_dataset_is_refused(run: Run, trained: Trained, place: str) -> None:
    status, _, err = run(trained.bundle, trained.data, "--output", trained.data / place)
    assert status == 2
    assert "inside of the input" in err
    assert not (trained.data / "report").exists()


def test_a_table_evaluates_as_its_folder(run: Run, trained: Trained, tmp_path: Path) -> None:
    lines = [f"{trained.data / name / name}.jpg\t{trained.classes.index(name)}" for name in trained.classes]
    (tmp_path / "labels.tsv").write_text("\n".join(["photo\tspecies", *lines, "none.jpg\t0"]))
    (tmp_path / "classes.txt").write_text("\n".join(trained.classes))
    status, out, err = run(trained.checkpoint, tmp_path / "labels.tsv", "--json", "--quiet")
    folder = json.loads(run(trained.checkpoint, trained.data, "--json")[1])
    table = json.loads(out)
    assert (status, table["top1"], table["loss"]) == (0, folder["top1"], folder["loss"])
    assert err == (
        f"{tmp_path / 'labels.tsv'}: 1 entry left out, named in the table, but there is no such file: "
        "labels.tsv: row 16: none.jpg\n"
    )


def test_the_held_out_fold_is_evaluated(run: Run, trained: Trained, tmp_path: Path) -> None:
    for name in trained.classes:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(trained.data / name / f"{name}.jpg", tmp_path / "photos" / name / f"{number}.jpg")
    status, out, _ = run(trained.bundle, tmp_path / "photos", "--fold", "2/4", "--json")
    assert (status, json.loads(out)["split"], json.loads(out)["images"]) == (0, "fold 2/4 of train", 14)
    assert json.loads(run(trained.bundle, tmp_path / "photos", "--json")[1])["images"] == 56
    checkpoint = load_checkpoint(trained.checkpoint)
    save_checkpoint(
        tmp_path / "fold.safetensors",
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        metrics={"dataset": "photos", "group": r"(\d)\.jpg", "fold": "1/4"},
    )
    for options, split, images in (((), "fold 1/4 of train, by group", 14), (("--split", "all"), "all", 56)):
        report = json.loads(run(tmp_path / "fold.safetensors", tmp_path / "photos", "--json", *options)[1])
        assert (report["split"], report["images"]) == (split, images)
    (tmp_path / "photos").rename(tmp_path / "others")
    assert json.loads(run(tmp_path / "fold.safetensors", tmp_path / "others", "--json")[1])["images"] == 56


def test_nothing_readable_is_an_error(run: Run, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / trained.classes[0]
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_text("no photo")
    (folder / "b.jpg").touch()
    status, out, err = run(trained.bundle, tmp_path / "photos", "--output", tmp_path / "report")
    assert (status, out) == (2, "")
    assert f"none of its 2 images can be read; the first: {folder / 'a.jpg'}: not an image" in err
    assert not (tmp_path / "report").exists()
    with pytest.raises(InputError, match="none of its 2 images"):
        found(trained, tmp_path / "photos")


def test_the_terminal_shows_the_worst_classes(trained: Trained) -> None:
    logits = np.eye(14)
    logits[3, 5] = 2.0
    evaluation = found(trained)
    predictions = type(evaluation.predictions).of(logits, range(14))
    lines = format_evaluation(dataclasses.replace(evaluation, predictions=predictions)).splitlines()
    assert lines[0] == "top-1 92.86%, top-5 100.00% on 14 images (all)"
    assert lines[1].startswith("loss ")
    assert lines[4].split() == ["worst", "classes", "accuracy", "images", "most", "often", "taken", "for"]
    assert lines[5].split() == [trained.classes[3], "0.0%", "1", trained.classes[5], "(1)"]
    assert len(lines) == 6  # the others were all classified correctly
    perfect = type(evaluation.predictions).of(np.eye(14), range(14))
    assert "classes" not in format_evaluation(dataclasses.replace(evaluation, predictions=perfect))


def test_a_model_that_diverged_gives_strict_json(trained: Trained) -> None:
    evaluation = found(trained)
    broken = type(evaluation.predictions).of(np.full((14, 14), np.nan), range(14))
    report = dataclasses.replace(evaluation, predictions=broken).to_dict()
    assert (report["loss"], report["calibration_error"]) == (None, None)
    json.dumps(report, allow_nan=False)


def test_the_report_is_written(run: Run, trained: Trained, damaged: tuple[Path, list[str]], tmp_path: Path) -> None:
    output = tmp_path / "report"
    status, out, _ = run(trained.bundle, damaged[0], "--output", output)
    assert status == 0
    assert out.splitlines()[-1] == f"Report: {output}"
    assert {path.name for path in output.iterdir()} == {
        "calibration.png",
        "classes.md",
        "confusion.png",
        "mistakes.png",
    }
    table = (output / "classes.md").read_text()
    assert table.splitlines()[0].endswith(" on photos")
    assert all(f"| {name} " in table for name in trained.classes)
    assert "3 could not be read" in table
    with Image.open(output / "mistakes.png") as image:
        assert image.width > 500
    status, out, err = run(trained.bundle, damaged[0], "--output", output)
    assert (status, out) == (2, "")
    assert "exists already" in err


def test_matplotlib_is_not_imported_without_a_report(trained: Trained) -> None:
    code = (
        "import sys; from lipsformer import cli\n"
        f"sys.argv = ['lipsformer', 'eval', {str(trained.bundle)!r}, {str(trained.data)!r}]\n"
        "try: cli.main()\nexcept SystemExit: print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
