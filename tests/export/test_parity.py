"""The parity gate: every way of being wrong is seen, and what is equal passes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer import Preprocessing
from lipsformer.datasets.spread import spread
from lipsformer.export.parity.check import FileParity, check_parity
from lipsformer.export.parity.gate_images import GateImages, ImageSource, hard_inputs
from lipsformer.export.parity.metrics import ParityMetrics, top1_agrees
from lipsformer.export.parity.reference import Reference
from lipsformer.export.parity.report import ParityReport
from lipsformer.export.parity.thresholds import THRESHOLDS, failure, read_thresholds
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import Outputs
from lipsformer.system.errors import GateError, InputError

Answer = Callable[[np.ndarray], np.ndarray]
SPEC = Preprocessing(image_size=8)
WEIGHTS = np.random.default_rng(1).normal(0.5, size=(192, 7)).astype(np.float32)
OVERFLOW = 70  # above all answers to photos, below the one to white


class Fake:
    """A runtime that is a linear layer, or what `answer` makes of its logits."""

    provider = "fake"

    def __init__(self, answer: Answer = lambda logits: logits) -> None:
        self.answer = answer

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits = (pixels.reshape(len(pixels), -1) / np.float32(255)) @ WEIGHTS
        return Outputs(self.answer(logits), logits)


@pytest.fixture(scope="module")
def reference() -> Reference:
    images = ImageSource.find(SAMPLES, ()).gate_images(28, SPEC)
    labels = Fake().infer(images.photos).logits.argmax(axis=1)
    labels[:7] += 1
    labels %= 7
    return Reference.of(Fake(), GateImages.of(images.photos, labels, "samples"))


class Drifting(Fake):
    """Right logits, and features that differ by `error`, relative; or none."""

    def __init__(self, error: float | None) -> None:
        super().__init__()
        self.error = error

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits, features = super().infer(pixels)
        return Outputs(logits, None if self.error is None else features * np.float32(1 + self.error))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (1e-7, None),
        (1e-3, "features_relative_l2 0.001 exceeds 1e-05"),
        (None, "features missing, expected (28, 7)"),
    ],
)
def test_features_are_compared_too(reference: Reference, error: float | None, failure: str | None) -> None:
    found = check_parity(
        Drifting(error),
        reference,
        file="x.onnx",
        target="ort",
        precision="fp32",
        max_batch=1,
        limits=THRESHOLDS["fp32"],
    )
    assert found.failures == ([] if failure is None else [f"batch 1: {failure}"])
    older = {name: limit for name, limit in THRESHOLDS["fp32"].items() if name != "features_relative_l2"}
    if error is None:
        assert check_parity(
            Drifting(None), reference, file="x.onnx", target="ort", precision="fp32", max_batch=1, limits=older
        ).passed


def check(reference: Reference, answer: Answer, precision: str = "fp32", max_batch: int = 8) -> FileParity:
    return check_parity(
        Fake(answer),
        reference,
        file="x.onnx",
        target="ort",
        precision=precision,
        max_batch=max_batch,
        limits=THRESHOLDS[precision],
    )


def test_what_is_equal_passes(reference: Reference) -> None:
    found = check(reference, lambda logits: logits)
    assert found.passed
    assert [row.batch for row in found.batches] == [1, 3, 8]
    assert found.worst("accuracy_loss") == 0
    assert found.worst("accuracy") == 0.75
    assert found.worst("top5_agreement") == 1
    assert (found.invariance.neighbors or 0) < 1e-6


@pytest.mark.parametrize(
    ("answer", "told", "count"),
    [
        (lambda logits: logits * 1.0001, "relative_l2 0.0001 exceeds 1e-05", 3),
        (lambda logits: logits * np.nan, "the logits of a photo are not finite", 3),
        (lambda logits: logits[:, ::-1], "relative_l2", 3),
        (lambda logits: logits[:, :6], "expected (28, 7)", 3),
        (lambda logits: logits[:1], "1 outputs for 8 images", 2),  # one answer whatever the batch
        (lambda logits: logits[::-1], "relative_l2", 2),  # right images, wrong order
        (lambda logits: logits - logits.mean(axis=0), "relative_l2", 3),
        (lambda logits: 1 / 0, "the runtime refused it (division by zero)", 3),
    ],
)
def test_every_way_of_being_wrong_is_seen(answer: Answer, told: str, count: int, reference: Reference) -> None:
    found = check(reference, answer)
    batches = [
        sentence for sentence in found.failures if sentence.startswith("batch ") and "invariance" not in sentence
    ]
    assert len(batches) == count
    assert told in batches[-1]


def test_a_hard_input_that_overflows_fails_alone(reference: Reference) -> None:
    found = check(reference, lambda logits: np.where(np.abs(logits) > OVERFLOW, np.inf, logits), "int8")
    largest = np.abs(reference.photos.logits).max()
    assert largest < OVERFLOW < np.abs(reference.hard.logits).max()
    assert "the logits of the hard input 'white' are not finite" in found.failures[0]


def test_a_hard_input_has_a_limit_too(reference: Reference) -> None:
    found = check(reference, lambda logits: np.clip(logits, -OVERFLOW, OVERFLOW), "fp16")
    assert "hard_relative_l2" in found.failures[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_answer_that_depends_on_its_neighbors_fails(precision: str, reference: Reference) -> None:
    """As dynamic quantization does: the largest value of the batch sets the steps of all."""

    def dynamic(logits: np.ndarray) -> np.ndarray:
        step = max(np.abs(logits).max(), 1) / 1e5
        return np.round(logits / step) * step

    limits = {name: limit for name, limit in THRESHOLDS[precision].items() if name in ("neighbours", "order")}
    found = check_parity(
        Fake(dynamic), reference, file="x", target="ort", precision=precision, max_batch=8, limits=limits
    )
    assert [sentence.partition(" exceeds")[0].rpartition(" ")[0] for sentence in found.failures] == [
        "batch invariance: neighbours"
    ]


def test_a_frozen_place_fails(reference: Reference) -> None:
    """Rounding differs by place in the batch: seen by dealing the photos in another order."""
    found = check(reference, lambda logits: logits * (1 + 3e-3 * np.arange(len(logits)))[:, None], "fp16")
    assert found.invariance.order is not None
    assert found.invariance.order > THRESHOLDS["fp16"]["order"]
    assert any(sentence.startswith("batch invariance: order") for sentence in found.failures)


def test_a_batch_of_one_has_no_mates(reference: Reference) -> None:
    found = check(reference, lambda logits: logits, max_batch=1)
    assert [row.batch for row in found.batches] == [1]
    assert found.invariance.neighbors is None
    assert found.passed


def test_lost_accuracy_fails(reference: Reference) -> None:
    """Among the right answers one becomes wrong, and the logits stay near."""

    def flip(logits: np.ndarray) -> np.ndarray:
        changed = logits.copy()
        best, second = np.argsort(-changed, axis=1)[:, :2].T
        rows = np.flatnonzero(np.all(np.isclose(logits[:, None], reference.photos.logits[20]), axis=2).any(axis=1))
        changed[rows, second[rows]] = changed[rows, best[rows]] * 1.001
        return changed

    found = check(reference, flip, "int8")
    assert found.worst("accuracy_loss") == pytest.approx(100 / 28)
    assert "top1_agreement 0.9643 is below 0.97" in found.failures[0]
    limits = {"accuracy_loss": 1.0}
    alone = check_parity(Fake(flip), reference, file="x", target="ort", precision="int8", max_batch=2, limits=limits)
    assert alone.failures[0] == "batch 1: accuracy_loss 3.57 exceeds 1"


def test_figures_by_hand() -> None:
    a = np.array([[3, 0, 0, 0, 0, 0, 1], [0, 4, 0, 0, 0, 0, 0]], np.float32)
    b = np.array([[3, 0, 0, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0, 0]], np.float32)
    found = ParityMetrics.of(Outputs(a, a[:, :2]), Outputs(b, a[:, :2] * np.float32(1.001)))
    assert found.features_relative_l2 == pytest.approx(1e-3, rel=1e-3)
    assert ParityMetrics.of(Outputs(a, None), Outputs(b, None)).features_relative_l2 is None
    assert found.relative_l2 == pytest.approx(np.sqrt(2))
    assert found.relative_l2_mean == pytest.approx((np.sqrt(2) + 1 / np.sqrt(10)) / 2)
    assert found.max_abs == 4
    assert found.cosine == 0
    assert found.top1_agreement == 0.5
    p = np.exp(a[1]) / np.exp(a[1]).sum()
    assert found.kl == pytest.approx(p[1] * 4 - p[2] * 4)
    assert found.top5_agreement == pytest.approx((4 / 5 + 5 / 5) / 2)


def test_a_tie_is_no_disagreement_and_a_lead_is_one() -> None:
    answers = np.array([[0, 1], [0, np.nan]], np.float32)
    assert top1_agrees(np.array([[1 + 1e-6, 1]] * 2, np.float32), answers).tolist() == [True, False]
    assert top1_agrees(np.array([[1 + 1e-4, 1]] * 2, np.float32), answers).tolist() == [False, False]


def test_a_checkpoint_that_is_not_finite_cannot_be_compared_with(reference: Reference) -> None:
    with pytest.raises(GateError, match="logits of the input 'white' are not finite"):
        Reference.of(Fake(lambda logits: np.where(np.abs(logits) > OVERFLOW, np.inf, logits)), reference.images)


def test_limits_can_be_changed_and_unknown_ones_are_refused() -> None:
    changed = read_thresholds(["fp16.relative_l2=1e-2", "int8.kl=0.5"])
    assert changed["fp16"] == {**THRESHOLDS["fp16"], "relative_l2": 1e-2}
    assert changed["int8"]["kl"] == 0.5
    assert changed["fp32"] == THRESHOLDS["fp32"]
    for setting, told in (
        ("fp16.relativ_l2=1", "did you mean 'fp16.relative_l2'?"),
        ("fp8.kl=1", "did you mean"),
        ("relative_l2=1", "unknown 'relative_l2'"),
        ("fp16.kl", "write PRECISION.METRIC=NUMBER"),
        ("fp16.kl=much", "'much' is not a finite number"),
        ("fp16.kl=nan", "'nan' is not a finite number"),
    ):
        with pytest.raises(InputError) as refusal:
            read_thresholds([setting])
        assert told in str(refusal.value)


def test_the_documentation_tells_the_limits() -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    told: dict[str, dict[str, float]] = {"fp32": {}, "fp16": {}, "bf16": {}, "int8": {}}
    for figure, *cells in re.findall(r"^\| `(\w+)`.* \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE):
        for precision, cell in zip(told, cells, strict=True):
            if cell.strip():
                number, percent = re.fullmatch(r" *([-\de.]+)(%)? *", cell).groups()  # type: ignore[union-attr]
                told[precision][figure] = float(number) / (100 if percent else 1)
    assert told == THRESHOLDS


def test_limits_bite_from_their_own_side() -> None:
    assert failure({"kl": 1.0, "cosine": 0.5}, {"kl": 1.0, "cosine": 0.5}) is None
    assert failure({"kl": 1.1}, {"kl": 1.0}) == "kl 1.1 exceeds 1"
    assert failure({"hard_cosine": 0.4}, {"hard_cosine": 0.5}) == "hard_cosine 0.4 is below 0.5"
    assert failure({"kl": float("nan")}, {"kl": 1.0}) == "kl nan exceeds 1"
    assert failure({"cosine": float("nan")}, {"cosine": 1.0}) == "cosine nan is below 1"
    assert failure({}, {"accuracy_loss": 1.0}) is None  # no labels


def test_images_are_spread_evenly_and_mirrored_where_there_are_few() -> None:
    assert spread(4, 100).tolist() == [12, 37, 62, 87]
    assert spread(9, 3).tolist() == [0, 1, 2]
    pool = ImageSource.find(SAMPLES, ())
    images = pool.gate_images(20, SPEC)
    assert images.labels is None
    assert len(images.photos) == 20
    assert np.array_equal(images.photos[14], images.photos[0][:, ::-1])
    few = pool.gate_images(5, SPEC, without=np.arange(12))
    assert np.array_equal(few.photos[:2], images.photos[12:14])
    assert len(few.photos) == 4


def test_labels_come_from_class_folders_of_the_checkpoints_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (name == "a" and "red") or "blue").save(tmp_path / name / "x.png")
    labeled = ImageSource.find(tmp_path, ("c", "b", "a"))
    assert labeled.labels is not None
    assert labeled.labels.tolist() == [2, 1]
    assert ImageSource.find(tmp_path, ("c", "a")).labels is None
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,class", *(f"{name},{name.partition('/')[0]}" for name in names), "none.jpg,a"]))
    (tmp_path / "a" / "Thumbs.db").touch()
    left_out = []
    for data, known in ((table, ("c", "b", "a")), (table, ("x", "y")), (tmp_path, ("c", "b", "a"))):
        source = ImageSource.find(data, known)
        assert len(source.images) == len(names)
        assert (source.labels is None) == ("x" in known)
        assert source.images.encoded(0) == labeled.images.encoded(0)
        left_out.append([*source.images.left_out.reasons])
    assert left_out == [["missing"], ["missing"], ["extension", "system"]]
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    images = labeled.gate_images(9, SPEC)
    assert images.labels is not None
    assert images.labels.tolist() == [1, 1]  # the one that can be read, and its mirror image
    (tmp_path / "b" / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 2 images can be read"):
        labeled.gate_images(9, SPEC)


def test_hard_inputs_are_what_they_are_called() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    hard = hard_inputs(photo)
    assert set(np.unique(hard["salt and pepper"])) == set(np.unique(hard["extreme contrast"])) == {0, 255}
    assert hard["checkerboard"][:2, :2, 0].tolist() == [[0, 255], [255, 0]]
    assert np.ptp(hard["faint contrast"]) <= 3
    assert [np.unique(hard[name]).tolist() for name in ("black", "white", "gray")] == [[0], [255], [128]]
    assert all(np.array_equal(value, hard_inputs(photo)[name]) for name, value in hard.items())


def test_the_reference_comes_back(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "parity.npz")
    loaded = Reference.load(tmp_path / "parity.npz")
    assert all(map(np.array_equal, loaded.photos, reference.photos))
    assert np.array_equal(loaded.images.hard, reference.images.hard)
    assert loaded.images.hard_names == reference.images.hard_names
    (tmp_path / "parity.npz").write_bytes(b"none")
    with pytest.raises(InputError, match=r"parity\.npz: reference logits cannot be read"):
        Reference.load(tmp_path / "parity.npz")


def test_the_report_shows_what_passed_and_what_failed(reference: Reference, tmp_path: Path) -> None:
    good, bad = check(reference, lambda logits: logits), check(reference, lambda logits: logits * np.nan)
    report = ParityReport(reference=reference, files=[good, bad])
    assert [path.name for path in report.write(tmp_path)] == ["parity.json", "parity.md", "parity.png"]
    data = json.loads((tmp_path / "parity.json").read_text(), parse_constant=pytest.fail)
    assert not data["passed"]
    assert [file["passed"] for file in data["files"]] == [True, False]
    assert data["checkpoint_accuracy"] == 0.75
    assert data["files"][0]["thresholds"] == THRESHOLDS["fp32"]
    text = (tmp_path / "parity.md").read_text()
    assert text.startswith("# Parity: FAILED")
    assert "- batch 3: the logits of a photo are not finite" in text
    with Image.open(tmp_path / "parity.png") as picture:
        assert picture.width > picture.height
