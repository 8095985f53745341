"""`train --dry-run` describes a training, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lipsformer.train import describe_training
from tests.support.command import Run
from tests.support.tiny_training import TINY, make_photos, train_tiny

SETTINGS = [f"--set={setting}" for setting in TINY]


def test_it_describes_and_writes_nothing(tmp_path: Path, run: Run) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "train" / "Orange" / "notes.txt").write_text("not a photo")
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = run(
        "train", photos, "--output", tmp_path / "run", "--epochs", "3", "--dry-run", "--json", *SETTINGS
    )
    assert status == 0
    found: dict[str, Any] = json.loads(out)
    assert sorted(tmp_path.rglob("*")) == before
    assert found["data"] == {
        "train": {"split": "train", "images": 12},
        "validation": {"split": "val", "images": 3},
        "classes": 3,
        "left_out": {"extension": 1},
    }
    assert found["steps"] == {"done": 0, "all": 9, "epochs": 3}
    model, step = found["model"], found["step"]
    assert model["image_size"] == 32
    assert model["parameters"] > model["multiply_adds"] / 100 > 0
    assert step["images"] == 4  # 12 images in 3 even steps
    assert step["memory"] > 100 * 2**20
    whole = 9 * step["seconds"] + 3 * step["validation_seconds"]
    assert step["seconds_to_the_end"] == pytest.approx(whole, abs=0.1)


def test_of_a_run_it_counts_what_is_left(photos: Path, tmp_path: Path, run: Run) -> None:
    train_tiny(photos, tmp_path / "run", epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    status, out, _ = run("train", photos, "--output", tmp_path / "run", "--dry-run")
    assert status == 0
    assert "steps       3 of 3 done, 1 epochs, on cpu" in out.splitlines()
    assert "a step" not in out
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_probe_has_no_steps(photos: Path, tmp_path: Path) -> None:
    found = describe_training(photos, output=tmp_path / "run", recipe="probe", overrides=(*TINY[:5], "workers=0"))
    assert found["step"] is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--json",), "--json: only --dry-run"), (("--dry-run", "--find-lr"), "omit one of the two")],
)
def test_what_does_not_go_together(
    options: tuple[str, ...], expected: str, photos: Path, tmp_path: Path, run: Run
) -> None:
    status, out, err = run("train", photos, "--output", tmp_path / "run", *options)
    assert (status, out) == (2, "")
    assert expected in err
