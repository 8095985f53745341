"""Heat maps: the evidence lights up where it is, sums are logits, and the command draws what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer import load_predictor
from lipsformer.evaluation.heat_maps.explainer import TorchExplainer
from lipsformer.evaluation.heat_maps.overlay import overlay
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.heat_map import HeatMap
from lipsformer.inference.runtimes import TorchRuntime
from tests.support.command import Run
from tests.support.models.squares import SIDE, colored_squares, train_on_squares
from tests.support.trained import Trained


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("lipsformer_swin_nano", {"num_heads": (1, 2, 2, 4)}),
        ("lipsformer_cswin_nano", {"patch_size": 4, "conv_branches": 1}),
    ],
)
def test_the_corner_with_the_square_lights_up(name: str, overrides: dict[str, object]) -> None:
    checkpoint = train_on_squares(name, **overrides)
    runtime = TorchRuntime(checkpoint)
    images, classes, corners = colored_squares(24, seed=1000)
    logits, features = runtime.infer(images.numpy())
    assert (logits.argmax(axis=1) == classes.numpy()).all()
    fine, exact = TorchExplainer(runtime), TorchExplainer(runtime, stage=4)
    weight, bias = (array.numpy() for array in (checkpoint.model.head.weight, checkpoint.model.head.bias))
    shares = []
    for image, index, corner, row, feature in zip(
        images.numpy(), classes.tolist(), corners.tolist(), logits, features, strict=True
    ):
        found = fine.explain(image, index).contributions
        side = len(found)
        assert side >= 8
        place = np.array(np.unravel_index(found.argmax(), found.shape)) // (side // 2)
        assert place.tolist() == corner
        quadrant = tuple(slice(side // 2 * at, side // 2 * (at + 1)) for at in corner)
        shares.append(found.clip(0)[quadrant].sum() / found.clip(0).sum())
        whole = exact.explain(image, index)
        assert whole.logit == pytest.approx(row[index], rel=1e-4)
        assert whole.bias == pytest.approx(bias[index] / 0.5, rel=1e-5)
        assert whole.sum == pytest.approx(row[index] - bias[index] / 0.5, rel=1e-4)
        assert whole.sum == pytest.approx(feature @ weight[index] / 0.5, rel=1e-4)
        assert whole.completeness == pytest.approx(1, rel=1e-4)
    assert np.mean(shares) > 0.6  # chance is a quarter


def test_the_overlay_is_colored_where_the_map_is() -> None:
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    found = np.zeros((4, 4), np.float32)
    found[0, 0], found[3, 3] = 2.0, -1.0
    drawn = overlay(pixels, HeatMap(contributions=found, index=0, logit=1.0, bias=0.0, stage=1)).astype(int)
    red, _, blue = drawn[0, 0]
    assert red > blue + 100
    red, _, blue = drawn[-1, -1]
    assert blue > red + 50
    assert np.ptp(drawn[0, -1]) == 0  # gray
    blank = HeatMap(contributions=np.zeros((4, 4), np.float32), index=0, logit=0.0, bias=0.0, stage=1)
    assert np.ptp(overlay(pixels, blank)) == 0
    assert blank.completeness is None


def test_the_command_draws_each_photo_and_says_which_it_cannot_read(run: Run, trained: Trained, tmp_path: Path) -> None:
    for folder, name in (("a", "Orange"), ("b", "Orange"), ("b", "Kaiser")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(SAMPLES / f"{name}.jpg", tmp_path / folder)
    (tmp_path / "b" / "note.jpg").write_text("not a photo")
    output = tmp_path / "maps"
    arguments = (trained.checkpoint, tmp_path / "a", tmp_path / "b", "--stage", 2, "--output", output, "--json")
    status, text, err = run("explain", *arguments)
    assert status == 1
    assert "note.jpg: " in err
    assert err.rstrip().endswith("1 of 4 photos cannot be read; the lines above say why")
    entries = json.loads(text)
    assert [entry["file"] for entry in entries] == ["Orange.png", "Kaiser.png", "Orange-2.png"]
    assert {path.name for path in output.iterdir()} == {"Orange.png", "Kaiser.png", "Orange-2.png", "sheet.png"}
    best = load_predictor(trained.checkpoint).predict([SAMPLES / "Orange.jpg"], 1)[0][0]
    assert (entries[0]["label"], entries[0]["index"], entries[0]["stage"]) == (best.label, best.index, 2)
    assert entries[0]["score"] == pytest.approx(best.score)
    assert np.shape(entries[0]["map"]) == (4, 4)
    assert entries[0]["sum"] == pytest.approx(np.sum(entries[0]["map"]), rel=1e-4)
    with Image.open(output / "Orange.png") as image:
        assert image.size == (448, 448)


def test_a_class_is_explained_by_name(run: Run, trained: Trained, tmp_path: Path) -> None:
    photo = SAMPLES / "Orange.jpg"
    options = ("--class", "Kaiser", "--output", tmp_path / "maps", "--stage", 4)
    status, text, _ = run("explain", trained.checkpoint, photo, *options)
    assert status == 0
    assert "Kaiser" in text.splitlines()[0]
    status, _, err = run("explain", trained.checkpoint, photo, "--class", "Kaisr", "--output", tmp_path / "other")
    assert status == 2
    assert "--class Kaisr: the model has no such class" in err
    assert "Kaiser" in err
    assert not (tmp_path / "other").exists()


def test_a_bundle_draws_what_its_checkpoint_draws(run: Run, explained: Trained, tmp_path: Path) -> None:
    maps = []
    for name in ("checkpoint", "bundle"):
        model, output = getattr(explained, name), tmp_path / name
        status, text, err = run("explain", model, SAMPLES / "Orange.jpg", "--output", output, "--json")
        assert (status, err) == (0, "")
        maps.append(json.loads(text)[0])
    wanted, found = maps
    assert (found["label"], found["stage"], found["stage"]) == (wanted["label"], wanted["stage"], 1)
    error = np.linalg.norm(np.subtract(found["map"], wanted["map"])) / np.linalg.norm(wanted["map"])
    assert error < 1e-4
    assert found["logit"] == pytest.approx(wanted["logit"], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "photo", "options", "message"),
    [
        ("checkpoint", "Orange.jpg", ("--stage", 5), "--stage 5: the network has the stages 1 to 4"),
        ("checkpoint", "nothing.jpg", (), "nothing.jpg: "),
        ("bundle", "Orange.jpg", ("--stage", 4), "--stage 4: the bundle has heat maps of stage 1; give its checkpoint"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    run: Run, explained: Trained, tmp_path: Path, model: str, photo: str, options: tuple[object, ...], message: str
) -> None:
    status, _, err = run("explain", getattr(explained, model), SAMPLES / photo, "--output", tmp_path / "maps", *options)
    assert status == 2
    assert message in err
    assert not (tmp_path / "maps").exists()


def test_a_bundle_without_heat_maps_says_how_to_get_them(run: Run, trained: Trained, tmp_path: Path) -> None:
    for model in (trained.bundle, trained.bundle / "ort-fp32.onnx"):
        status, _, err = run("explain", model, SAMPLES / "Orange.jpg", "--output", tmp_path / "maps")
        assert status == 2
        assert err.rstrip().endswith("has no heat maps; give its checkpoint, or export the bundle with --explain")
