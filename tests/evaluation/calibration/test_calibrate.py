"""`lipsformer calibrate`, from photos to answers: the same in the checkpoint, its graph and its bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lipsformer import load_checkpoint, load_predictor
from lipsformer.bundle.acceptance import AcceptanceRule, AcceptanceThresholds, FeatureSpace
from lipsformer.datasets import open_labeled, open_unlabeled
from lipsformer.evaluation.calibration.calibrate import AcceptanceGoal, Calibration, calibrate
from lipsformer.export import export_bundle
from lipsformer.inference.classification import Classification
from lipsformer.inference.predictor import softmax
from lipsformer.system.errors import InputError
from tests.support.command import Run
from tests.support.trained import Trained

PHOTOS = 90  # of each split
SIDE = 32


def pixels(seed: int) -> np.ndarray:
    """A photo that the small model sees as one of several classes: a color with some noise."""
    generator = np.random.default_rng(seed)
    color, noise = generator.integers(0, 256, 3), generator.integers(-40, 40, (SIDE, SIDE, 3))
    return np.clip(color + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in the folder of the class that the model gives them, except every tenth."""
    root = tmp_path_factory.mktemp("data")
    predictor = load_predictor(trained.checkpoint)
    for split, first in (("train", 0), ("val", PHOTOS)):
        photos = [Image.fromarray(pixels(first + number)) for number in range(PHOTOS)]
        for number, (photo, answer) in enumerate(zip(photos, predictor.predict(photos, 2), strict=True)):
            label = answer[1 if number % 10 == 0 else 0].label
            if split == "train" or (root / "train" / label).exists():
                (root / split / label).mkdir(exist_ok=True, parents=True)
                photo.save(root / split / label / f"{number}.png")
    (root / "others").mkdir()
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / "others" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def calibrated(trained: Trained, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    """The calibrated checkpoint, and what became of it."""
    output = tmp_path_factory.mktemp("calibrated") / "calibrated.safetensors"
    train, val = (open_labeled(data / split, trained.classes) for split in ("train", "val"))
    goal = AcceptanceGoal(max_error=0.3, confidence=0.9, train=train, outliers=open_unlabeled(data / "others"))
    return output, calibrate(trained.checkpoint, output, val, goal, device="cpu")


def test_the_checkpoint_keeps_its_weights_and_gets_a_temperature_and_a_rule(
    trained: Trained, calibrated: tuple[Path, Calibration]
) -> None:
    before, after = load_checkpoint(trained.checkpoint), load_checkpoint(calibrated[0])
    assert (before.temperature, before.acceptance) == (1.0, None)
    assert after.acceptance is not None
    for name, tensor in before.model.state_dict().items():
        assert tensor.equal(after.model.state_dict()[name])
    told = calibrated[1]
    assert told.temperature == after.temperature != 1.0
    assert told.thresholds == after.acceptance.thresholds
    assert told.after.loss < told.before.loss
    assert told.outliers is not None
    assert told.outliers.images == 20
    assert told.outliers.auroc_of_distance > 0.99  # noise is far from colors


def test_answers_are_the_same_from_checkpoint_graph_and_bundle(
    trained: Trained, calibrated: tuple[Path, Calibration], data: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(calibrated[0])
    export_bundle(calibrated[0], tmp_path / "bundle")
    photos = sorted((data / "val").rglob("*.png"))[:20] + sorted((data / "others").iterdir())[:5]
    plain = load_predictor(trained.checkpoint)
    raw = plain.runtime.infer(np.stack([plain.prepare(photo) for photo in photos])).logits
    models = (calibrated[0], tmp_path / "bundle", tmp_path / "bundle" / "ort-fp32.onnx")
    answers = [load_predictor(model).predict(photos, 1) for model in models]
    for wanted, *others, logits in zip(*answers, raw, strict=True):
        assert wanted[0].index == logits.argmax()  # the best class stays
        assert wanted[0].score == pytest.approx(softmax(logits / checkpoint.temperature).max(), abs=1e-5)
        for other in others:
            assert other[0].label == wanted[0].label
            assert other[0].score == pytest.approx(wanted[0].score, abs=1e-4)
            assert other.distance == pytest.approx(wanted.distance, abs=1e-4)
            assert (other.accepted, other.reason) == (wanted.accepted, wanted.reason)
    assert {answer.reason for answer in answers[0][20:]} == {"unfamiliar"}
    assert any(answer.accepted for answer in answers[0][:20])
    assert load_predictor(trained.checkpoint).predict(photos[:1])[0].to_dict().keys() == {"predictions"}


def test_eval_says_what_was_accepted(
    run: Run, calibrated: tuple[Path, Calibration], data: Path, tmp_path: Path
) -> None:
    status, out, _ = run("eval", calibrated[0], data / "val", "--json", "-q", "--output", tmp_path / "r")
    found = json.loads(out)
    assert status == 0
    photos = sorted((data / "val").rglob("*.png"))
    answers = load_predictor(calibrated[0]).predict(photos, 1)
    accepted = [
        (answer[0].label == photo.parent.name) for answer, photo in zip(answers, photos, strict=True) if answer.accepted
    ]
    assert found["acceptance"]["accepted"] == len(accepted) > 0
    assert found["acceptance"]["wrong"] == accepted.count(False)
    assert found["acceptance"]["low_score"] + found["acceptance"]["unfamiliar"] == len(photos) - len(accepted)
    assert found["uncalibrated"]["loss"] > found["loss"]
    assert (tmp_path / "r" / "calibration.png").stat().st_size > 10_000
    _, out, _ = run("eval", calibrated[0], data / "val", "-q")
    assert f"accepted {len(accepted) / len(photos):.1%}" in out


def test_predict_says_that_it_is_not_sure(run: Run, calibrated: tuple[Path, Calibration], data: Path) -> None:
    noise = data / "others" / "0.png"
    _, out, _ = run("predict", calibrated[0], noise)
    assert "0.png  not sure: unlike the training photos" in out
    _, out, _ = run("predict", calibrated[0], noise, "--json")
    (entry,) = json.loads(out)
    assert (entry["accepted"], entry["reason"]) == (False, "unfamiliar")


@pytest.fixture
def dataset(data: Path, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        shutil.copytree(data / split, tmp_path / "dataset" / split)
    return tmp_path / "dataset"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--outliers", "x"), "--outliers needs --max-error"),
        (("--max-error", "0.001"), "photos are too few to show an error of at most 0.001"),
        (("--max-error", "2"), "max_error 2.0 and confidence 0.95: each must be between 0 and 1"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    options: tuple[str, ...], told: str, run: Run, trained: Trained, dataset: Path
) -> None:
    output = dataset / "x.safetensors"
    status, _, err = run("calibrate", trained.checkpoint, dataset, "--output", output, "-q", *options)
    assert (status, output.exists()) == (2, False)
    assert told in err


def test_the_command_says_what_it_added(run: Run, trained: Trained, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.safetensors"
    status, out, _ = run("calibrate", trained.checkpoint, dataset, "--output", output, "-q", "--max-error", "0.3")
    temperature, acceptance = load_checkpoint(output).temperature, load_checkpoint(output).acceptance
    assert status == 0
    assert acceptance is not None
    assert out.startswith(f"temperature {temperature:g}, fitted to")
    assert f"score at least {acceptance.thresholds.min_score:.3f}" in out
    status, out, _ = run("calibrate", output, dataset, "--output", output, "-q", "--json")  # again, without a rule
    assert json.loads(out)["temperature"] == load_checkpoint(output).temperature == temperature
    assert load_checkpoint(output).acceptance is None


def test_what_is_left_out_of_the_outliers_is_reported(
    run: Run, trained: Trained, dataset: Path, data: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    shutil.copytree(data / "others", others)
    (others / "notes.txt").write_text("not a photo")
    words = ("--output", tmp_path / "x.safetensors", "--max-error", "0.3", "--outliers", others)
    status, out, err = run("calibrate", trained.checkpoint, dataset, "-q", *words)
    assert status == 0
    assert "of 20 are accepted" in out
    assert "others" in err
    assert "notes.txt" in err


def test_a_bundle_cannot_be_calibrated(run: Run, trained: Trained, dataset: Path, tmp_path: Path) -> None:
    status, _, err = run("calibrate", trained.bundle, dataset, "--output", tmp_path / "x.safetensors")
    assert status == 2
    assert "checkpoint" in err


@pytest.mark.parametrize("value", [0.0, -1.0, 1e6, "hot", None, float("nan")])
def test_a_checkpoint_with_an_impossible_temperature_is_refused(
    value: object, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    with safe_open(trained.checkpoint, framework="pt") as file:
        metadata = json.loads(file.metadata()["lipsformer"])
    save_file(
        load_file(trained.checkpoint), path, metadata={"lipsformer": json.dumps({**metadata, "temperature": value})}
    )
    with pytest.raises(InputError, match="temperature"):
        load_checkpoint(path)


def rule(channels: int = 4, **changes: float) -> AcceptanceRule:
    values = {"min_score": 0.5, "max_distance": 2.0, "max_error": 0.1, "confidence": 0.9, "coverage": 0.8}
    space = FeatureSpace(means=np.zeros((2, channels), np.float32), whitening=np.eye(channels, dtype=np.float32))
    return AcceptanceRule(thresholds=AcceptanceThresholds(**{**values, **changes}, photos=10), space=space)


def test_a_rule_survives_its_file_and_a_damaged_file_is_refused() -> None:
    content = rule().to_bytes()
    read = AcceptanceRule.from_bytes(content)
    assert read.thresholds == rule().thresholds
    assert np.array_equal(read.space.whitening, rule().space.whitening)
    for damaged in (b"", content[:-1], content[:20], content.replace(b"min_score", b"max_score")):
        with pytest.raises(InputError, match=r"calibrate the model again|unknown|missing"):
            AcceptanceRule.from_bytes(damaged)


def test_a_rule_tells_the_distance_before_the_score() -> None:
    assert rule().refusal(0.5, 2.0) is None
    assert rule().refusal(0.49, 2.0) == "low_score"
    assert rule().refusal(0.1, 2.1) == rule().refusal(0.9, float("nan")) == "unfamiliar"
    assert rule().space.distances(np.array([[2, 2, 2, 2]], np.float32)).tolist() == [2.0]


@pytest.mark.parametrize(
    "changes", [{"min_score": 1.5}, {"max_distance": 0.0}, {"max_error": 0.0}, {"confidence": 1.0}]
)
def test_thresholds_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        rule(**changes)


def test_an_answer_without_a_rule_has_nothing_about_it() -> None:
    assert Classification(predictions=()).to_dict() == {"predictions": []}
