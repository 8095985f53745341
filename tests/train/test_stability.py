"""The stability grid: its trainings, how it resumes, and its report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lipsformer import InputError, LipsFormerError
from lipsformer.system import console
from lipsformer.train import load_recipe
from lipsformer.train.metrics import EpochSums
from lipsformer.train.stability.grid import measure_stability, parse_rates
from lipsformer.train.stability.report import Chance, describe, render_report, summarize
from tests.support.tiny_training import TINY, make_photos
from tests.train.test_progress import step_metrics

SIZES = [text for text in TINY if not text.startswith("model.name")]
MODELS = ("lipsformer_swin_nano", "swin_nano")
COLUMNS = (MODELS[0], f"plain: {MODELS[1]} clip_grad=4.0")
LABELS = (MODELS[0], "plain")
RATES = "2e-3,1e30"  # one at which the models learn, one at which nothing could
SETTINGS: dict[str, Any] = {
    "columns": COLUMNS,
    "learning_rates": RATES,
    "epochs": 8,
    "overrides": [*SIZES, "batch_size=1"],
    "jobs": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of each class to train on, and four to validate on: fewer could not show more than chance."""
    root = make_photos(tmp_path_factory.mktemp("photos") / "photos")
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    return root


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted grid."""
    output = tmp_path_factory.mktemp("finished") / "grid"
    measure_stability(photos, output=output, **SETTINGS)
    return output


def runs(output: Path) -> list[dict[str, Any]]:
    """The runs of a grid's report without their timings."""
    report = json.loads((output / "stability.json").read_text(), parse_constant=pytest.fail)
    return [{name: value for name, value in run.items() if name != "seconds"} for run in report["runs"]]


@pytest.mark.slow
def test_report_is_complete_and_a_divergence_is_a_result(finished: Path) -> None:
    report = json.loads((finished / "stability.json").read_text())
    assert [(run["column"], run["learning_rate"], run["outcome"]) for run in report["runs"]] == [
        (LABELS[0], 2e-3, "learned"),
        (LABELS[1], 2e-3, "learned"),
        (LABELS[0], 1e30, "diverged"),
        (LABELS[1], 1e30, "diverged"),
    ]
    for run in report["runs"]:
        diverged = run["outcome"] == "diverged"
        assert (run["skipped_steps"] >= 20) == diverged
        assert (run["top1"] is None) == diverged
        assert run["curve"][0][1] == pytest.approx(math.log(3), abs=0.3)
        assert [time for time, _ in run["curve"]] == sorted({time for time, _ in run["curve"]})
        assert len(run["curve"]) % 12 == 0  # steps in an epoch
        assert diverged == (run["curve"][-1][1] is None)
    assert all(1 <= run["diverged_at"] <= 12 for run in report["runs"][2:])
    for name in LABELS:
        assert report["parameters"][name] > 100_000
        assert report["summary"][name]["best"]["learning_rate"] == 2e-3
        assert report["summary"][name]["usable"]["decades"] == 0
    table = (finished / "stability.md").read_text()
    assert re.search(r"^\| +0.002 \| \d+\.\d% +\| \d+\.\d% +\|$", table, re.MULTILINE)
    assert re.search(r"^\| +1e\+30 \| diverged at step \d+, \d+ steps skipped +\| diverged", table, re.MULTILINE)
    assert f"- {LABELS[0]}: clip_grad 5.0, model.name {MODELS[0]}\n" in table
    assert f"- plain: clip_grad 4.0, model.name {MODELS[1]}\n" in table
    assert "Settings of all: method train, " in table
    with Image.open(finished / "stability.png") as image:
        assert image.width > 1000


@pytest.mark.slow
def test_columns_differ_in_what_they_name_alone(finished: Path) -> None:
    recipes = [
        load_recipe(str(finished / "runs" / f"{name}-rate0.002-seed0" / "run" / "recipe.toml")) for name in LABELS
    ]
    changed = {line.split()[0] for line in recipes[0].differences(recipes[1])}
    assert changed == {"clip_grad"} | {
        f"model.{name}"
        for name in (
            "name",
            "norm",
            "norm_position",
            "attention",
            "residual",
            "init",
            "conv_branches",
            "shifted_windows",
        )
    }


@pytest.mark.slow
def test_finished_grid_is_not_repeated_and_another_is_refused(
    photos: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*")}
    with console.quiet():
        report = measure_stability(photos, output=finished, **{**SETTINGS, "jobs": 1})
    assert capsys.readouterr() == ("", f"{finished / 'stability.md'}, stability.png and stability.json are ready\n")
    assert report["machine"]["jobs"] == 1
    measure_stability(photos, output=finished, **SETTINGS)
    assert capsys.readouterr().err.startswith(
        "4 trainings, 4 already finished; 2 in parallel, each on cpu with 1 thread"
    )
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*")} == before
    for change, told in (
        ({"learning_rates": "1e-3,1e30"}, "learning rates were 0.002, 1e+30, are 0.001, 1e+30"),
        ({"seeds": 2}, "seeds were 0, are 0, 1"),
        ({"epochs": 3}, "(epochs was 8, is 3)"),
        ({"overrides": [*SIZES, "batch_size=2"]}, "(batch_size was 1, is 2)"),
        ({"columns": COLUMNS[::-1]}, "columns were lipsformer_swin_nano, plain, are plain, lipsformer_swin_nano"),
        ({"columns": (COLUMNS[0], f"plain: {MODELS[1]}")}, "(clip_grad was 4.0, is 5.0)"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            measure_stability(photos, output=finished, **{**SETTINGS, **change})
    (photos / "train" / "Orange" / "9.jpg").symlink_to(photos / "train" / "Orange" / "1.jpg")
    with pytest.raises(InputError, match="the dataset differs"):
        measure_stability(photos, output=finished, **SETTINGS)
    (photos / "train" / "Orange" / "9.jpg").unlink()


def command(photos: Path, output: Path, rates: str = RATES) -> list[str]:
    """`SETTINGS` as a command line."""
    return [
        *(sys.executable, "-m", "lipsformer", "stability", str(photos), f"--output={output}", "--epochs=8"),
        *(f"--column={text}" for text in COLUMNS),
        *(f"--learning-rates={rates}", "--jobs=2", "--device=cpu"),
        *(f"--set={text}" for text in SETTINGS["overrides"]),
    ]


def processes_in(folder: Path) -> list[int]:
    """Running processes that have a file in `folder` open, such as the log that they write."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if path.readlink().is_relative_to(folder):
                found.append(int(path.parts[2]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "rates"), [(signal.SIGKILL, RATES), (signal.SIGINT, "2e-3")])
def test_stopped_grid_resumes_to_the_same_numbers(
    photos: Path, finished: Path, tmp_path: Path, stop: signal.Signals, rates: str
) -> None:
    output = tmp_path / "grid"
    process = subprocess.Popen(
        command(photos, output, rates),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("runs/*/run/state-*[!0].safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, stop)
    assert process.wait(timeout=60) == (130 if stop == signal.SIGINT else -stop)
    assert list(output.glob("runs/*/run/metrics.jsonl"))
    assert not (output / "stability.json").exists()
    while processes_in(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(output) == []
    again = subprocess.run([*command(photos, output, rates), "--json"], capture_output=True, text=True, check=True)
    assert "resumed at step" in "".join(path.read_text() for path in output.glob("runs/*/log.txt"))
    assert runs(output) == runs(finished)[: len(runs(output))]
    if rates == RATES:
        assert json.loads(again.stdout)["summary"] == json.loads((finished / "stability.json").read_text())["summary"]
    assert json.loads(again.stdout) == json.loads((output / "stability.json").read_text())


@pytest.mark.slow
def test_input_that_a_training_finds_bad_stops_the_grid(photos: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "photos"
    shutil.copytree(photos, damaged)
    for photo in (damaged / "train").rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes()[:2000])
    message = rf"{re.escape(str(damaged))}.*: damaged or cut off.*images in a row cannot be read$"
    with pytest.raises(InputError, match=message):
        measure_stability(damaged, output=tmp_path / "grid", **SETTINGS)
    assert not list((tmp_path / "grid").glob("runs/*/result.json"))
    assert processes_in(tmp_path / "grid") == []


@pytest.mark.slow
def test_process_that_fails_is_an_error_and_no_result(photos: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "grid")
    trial = tmp_path / "grid" / "runs" / f"{LABELS[0]}-rate0.002-seed0"
    (trial / "result.json").unlink()
    (trial / "run" / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(LipsFormerError, match=r"its process ended with status 1 .*log\.txt"):
        measure_stability(photos, output=tmp_path / "grid", **SETTINGS)
    assert not (trial / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rates": "1e-3,fast"}, "--learning-rates 1e-3,fast: 'fast' is not a number"),
        ({"learning_rates": ""}, "'' is not a number"),
        ({"learning_rates": "1e-3,-1"}, "-1 is not above 0 and finite"),
        ({"learning_rates": "nan"}, "nan is not above 0 and finite"),
        ({"learning_rates": "1e-3,0.001"}, "a rate occurs twice"),
        ({"columns": (MODELS[0], f"again: {MODELS[0]} epochs=8")}, f"'{MODELS[0]}' and 'again' are the same training"),
        ({"columns": (MODELS[0], f"{MODELS[0]} epochs=9")}, f"two are called '{MODELS[0]}'; write one as 'LABEL: "),
        ({"columns": ("a/b: swin_nano",)}, "--column 'a/b: swin_nano': a label has letters, digits"),
        ({"columns": ("",)}, "--column '': write [LABEL:] VARIANT [KEY=VALUE ...]"),
        ({"columns": ("'swin_nano",)}, "write [LABEL:] VARIANT [KEY=VALUE ...]"),
        ({"columns": ("swin_nano seed=3",)}, "'swin_nano seed=3': the grid decides seed; use --set and --seeds"),
        ({"columns": ("swin_nano epoch=3",)}, "did you mean 'epochs'?"),
        ({"overrides": ['model={name="swin_nano"}']}, "--set: the grid decides model; use --column"),
        ({"columns": ("swin_nanno",)}, "did you mean 'swin_nano'?"),
        ({"seeds": 0}, "--seeds: at least 1"),
        ({"jobs": 0}, "--jobs: at least 1"),
        ({"overrides": ["learning_rate=1"]}, "--set: the grid decides learning_rate; use --learning-rates"),
        ({"overrides": ["model.name=swin_tiny"]}, "--set: the grid decides model.name; use --column"),
        ({"overrides": ["model.depth=1"]}, "did you mean 'depths'?"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_bad_input(photos: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        measure_stability(photos, output=tmp_path / "grid", **{**SETTINGS, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "grid").exists()


def test_folder_of_something_else(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"holds no grid\.json"):
        measure_stability(photos, output=tmp_path, **SETTINGS)
    (tmp_path / "grid.json").write_text("{}")
    with pytest.raises(InputError, match=r"grid\.json: cannot be read"):
        measure_stability(photos, output=tmp_path, **SETTINGS)


def test_rates_rise() -> None:
    assert parse_rates("1e-2, 1e-3,0.1") == (1e-3, 1e-2, 0.1)


def test_loss_curve_has_even_slices_and_shows_skipped_ones() -> None:
    sums = EpochSums(50)
    for step in range(30):
        skipped = 5 <= step < 10 or step == 11
        loss = float("nan") if skipped else 2.0 * step
        sums.add(step_metrics(step + 1, loss_sum=loss, correct=1.0, images=2, seconds=2.0, data_seconds=0.5))
    # 20 slices of 2 or 3 steps: 0 to 2, 3 and 4, 5 to 7, 8 and 9, 10 to 12, ...
    means = sums.means()
    curve = means["train_loss_curve"]
    assert curve[:5] == [1.0, 3.5, None, None, 11.0]
    assert curve[12:] == [None] * 8  # not reached yet
    assert (means["skipped_steps"], means["train_top1"]) == (6, 0.5)
    assert (means["images_per_second"], means["data_wait"]) == (1.0, 0.25)
    restored = EpochSums.from_dict(json.loads(json.dumps(sums.to_dict()))).means()
    assert restored == means | {"images_per_second": None, "data_wait": None}
    few = EpochSums(3)
    few.add(step_metrics(1, loss_sum=6.0, images=3))
    assert few.means()["train_loss_curve"] == [2.0, None, None]


CHANCE = Chance.of([0] * 50 + [1] * 50, 2)


def ended(top1: float = 0.9, loss: float | None = 0.1) -> dict[str, Any]:
    """What a trial of one epoch wrote."""
    record = {"train_loss_curve": [0.9, loss], "skipped_steps": 1, "val_top1": top1, "val_loss": 0.2, "seconds": 3.0}
    return {"diverged_at": None, "unfinished": None, "epochs": [record]}


def test_outcomes() -> None:
    assert Chance(top1=0.5, noise=pytest.approx(0.15), loss=pytest.approx(0.693, abs=1e-3)) == CHANCE
    recipe = load_recipe("default")
    assert describe("a", recipe, ended(), CHANCE)["outcome"] == "learned"
    assert describe("a", recipe, ended(top1=0.64), CHANCE)["outcome"] == "did not learn"
    assert describe("a", recipe, ended(top1=0.66), CHANCE)["outcome"] == "learned"
    assert describe("a", recipe, ended(loss=0.7), CHANCE)["outcome"] == "did not learn"
    assert describe("a", recipe, ended(loss=None), CHANCE)["outcome"] == "did not learn"
    unfinished = {"train_loss_curve": [0.5, None], "skipped_steps": 20}
    run = describe("a", recipe, ended() | {"diverged_at": 7, "unfinished": unfinished}, CHANCE)
    assert (run["outcome"], run["diverged_at"], run["top1"], run["skipped_steps"]) == ("diverged", 7, None, 21)
    assert run["curve"] == [(0.25, 0.9), (0.75, 0.1), (1.25, 0.5), (1.75, None)]


def test_the_benchmark_is_such_a_report() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "stability"
    text = render_report(json.loads((folder / "stability.json").read_text()))
    assert (folder / "README.md").read_text().splitlines() == text.splitlines()


def row(*tops: float | None) -> list[dict[str, Any]]:
    """Runs at 1e-4, 1e-3, ... with these accuracies; nothing for one that diverged."""
    return [
        {"learning_rate": 10.0**power, "top1": top, "outcome": "diverged" if top is None else "learned"}
        for power, top in enumerate(tops, start=-4)
    ]


def test_usable_range() -> None:
    def usable(*tops: float | None) -> tuple[Any, ...]:
        found = summarize(row(*tops))["usable"]
        return tuple(found[name] for name in ("from", "to", "decades", "open_below", "open_above"))

    assert usable(0.30, 0.56, 0.60, 0.551, None) == (1e-3, 0.1, 2.0, False, False)
    assert usable(0.60, 0.54, 0.60, 0.20, None) == (1e-4, 1e-4, 0.0, True, False)  # a gap ends the range
    assert usable(0.10, 0.30, 0.60, 0.59, 0.60) == (1e-2, 1.0, 2.0, False, True)
    assert summarize(row(None, None))["usable"] is None
    assert summarize(row(None, None))["highest_learned"] is None
    assert summarize(row(0.60, 0.30, 0.20, None))["highest_learned"] == 1e-2
    two_seeds = row(0.5, 0.6, 0.59) + row(0.5, 0.58, None)
    assert summarize(two_seeds)["usable"]["to"] == 1e-3  # one seed diverged at the next rate
    assert summarize(two_seeds)["best"] == {"learning_rate": 1e-3, "top1": pytest.approx(0.59)}
    assert summarize(two_seeds)["diverged"] == 1
