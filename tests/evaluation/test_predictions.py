"""The figures of an evaluation, against a second way of counting each."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from lipsformer.evaluation.predictions import Predictions

CLASSES = 7


def answers(images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K), many of them equal, and labels that they guess better than chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES - 1, images)  # the last class has no images
    logits = generator.normal(size=(images, CLASSES)).round(1)
    logits[np.arange(images), labels] += 1.0
    return logits.astype(np.float32), labels


@pytest.fixture
def found() -> Predictions:
    return Predictions.of(*answers())


def dense(predictions: Predictions) -> np.ndarray:
    """The confusion matrix (K, K)."""
    counts = np.zeros((predictions.classes, predictions.classes), np.int64)
    true, predicted, images = predictions.confusion()
    counts[true, predicted] = images
    return counts


def test_rank_prediction_and_shares_are_those_of_a_stable_sort(found: Predictions) -> None:
    logits, labels = answers()
    hits = np.argsort(-logits, axis=1, kind="stable") == labels[:, None]
    assert (found.rank == hits.argmax(axis=1)).all()
    assert ((found.rank == 0) == found.correct).all()
    assert (found.predicted == logits.argmax(axis=1)).all()
    assert found.top1 == hits[:, 0].mean()
    assert found.top5 == hits[:, :5].any(axis=1).mean()
    assert 0.2 < found.top1 < found.top5 < 1


def test_loss_and_confidence_are_those_of_torch(found: Predictions) -> None:
    logits, labels = (torch.from_numpy(array) for array in answers())
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="none").numpy(), abs=1e-12)
    assert found.confidence == pytest.approx(logits.double().softmax(dim=1).amax(dim=1).numpy(), abs=1e-12)
    assert found.mean_loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)))


def test_confusion_and_class_figures_are_those_of_torchmetrics(found: Predictions) -> None:
    predicted, labels = torch.from_numpy(found.predicted), torch.from_numpy(found.labels)
    counts = multiclass_confusion_matrix(predicted, labels, CLASSES).numpy()
    assert (dense(found) == counts).all()
    rows = found.per_class()
    for name, metric in (
        ("accuracy", multiclass_recall),
        ("precision", multiclass_precision),
        ("f1", multiclass_f1_score),
    ):
        expected = metric(predicted, labels, CLASSES, average="none").tolist()
        assert [getattr(row, name) for row in rows[:-1]] == pytest.approx(expected[:-1])
    assert [row.images for row in rows] == np.bincount(labels, minlength=CLASSES).tolist()
    for row in rows[:-1]:
        others = np.delete(counts[row.index], row.index)
        assert row.confused == others.max() == counts[row.index, row.confused_with]
        assert row.confused_with != row.index


@pytest.mark.parametrize(("images", "classes"), [(60, 2), (400, 5), (500, 40), (300, 900)])
def test_class_figures_are_those_of_the_whole_matrix(images: int, classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels, logits = generator.integers(0, classes, images), generator.normal(size=(images, classes))
    found = Predictions.of(logits, labels, generator.random(images) < 0.9)
    counts = dense(found)
    assert counts.sum() == found.images
    mistakes = counts - np.diag(np.diag(counts))
    for row in found.per_class():
        k, right = row.index, counts[row.index, row.index]
        assert row.images == counts[k].sum()
        assert row.accuracy == (right / counts[k].sum() if counts[k].any() else None)
        assert row.precision == (right / counts[:, k].sum() if counts[:, k].any() else None)
        assert row.confused == mistakes[k].max()
        assert row.confused_with == (mistakes[k].argmax() if row.confused else None)  # of equal counts, the first
    true, predicted, images_each = found.confusion().mistakes()
    expected = np.argsort(-mistakes, axis=None, kind="stable")[: len(true)]
    assert (true * classes + predicted).tolist() == expected.tolist()
    assert images_each.tolist() == mistakes.ravel()[expected].tolist()


@pytest.mark.parametrize("classes", [4_000, 10_000, 21_841])
def test_memory_does_not_grow_with_the_square_of_the_classes(classes: int) -> None:
    labels = np.arange(50_000) % classes
    predicted = np.where(labels % 3, labels, np.arange(50_000) * 7919 % classes)
    zeros = np.zeros(len(labels))
    found = Predictions(
        labels=labels, predicted=predicted, rank=zeros, loss=zeros, confidence=zeros, classes=classes
    )  # fmt: skip
    tracemalloc.start()
    try:
        assert sum(row.confused > 0 for row in found.per_class()) > classes / 4
        assert tracemalloc.get_traced_memory()[1] < 40e6  # a matrix of 4,000 classes takes 128 MB
    finally:
        tracemalloc.stop()


def test_a_class_without_images_has_no_accuracy(found: Predictions) -> None:
    last = found.per_class()[-1]
    assert (last.images, last.accuracy, last.confused_with, last.confused) == (0, None, None, 0)
    assert last.precision == 0.0  # it was named, always wrongly
    never = Predictions.of(np.eye(3)[:2], [0, 1]).per_class()[2]
    assert (never.precision, never.f1) == (None, None)


@pytest.mark.parametrize("bins", [1, 15, 40])
def test_calibration_error_is_that_of_torchmetrics(found: Predictions, bins: int) -> None:
    confidence, correct = torch.from_numpy(found.confidence), torch.from_numpy(found.correct).int()
    expected = float(binary_calibration_error(confidence, correct, n_bins=bins, norm="l1"))
    assert found.calibration_error(bins) == pytest.approx(expected, abs=1e-6)
    assert expected > 0.01


def test_certainty_that_is_right_is_calibrated_and_one_that_is_wrong_is_not() -> None:
    logits = np.eye(4) * 1e3
    assert Predictions.of(logits, [0, 1, 2, 3]).calibration_error() == 0.0
    assert Predictions.of(logits, [1, 2, 3, 0]).calibration_error() == 1.0


def test_worst_are_the_mistakes_by_falling_loss(found: Predictions) -> None:
    expected = sorted(np.flatnonzero(~found.correct), key=lambda i: -found.loss[i])
    assert found.worst(10).tolist() == expected[:10]
    assert len(found.worst(10**6)) == len(expected)
    assert len(Predictions.of(np.eye(3), [0, 1, 2]).worst(5)) == 0


def test_joined_batches_are_the_whole(found: Predictions) -> None:
    logits, labels = answers()
    joined = Predictions.join([Predictions.of(logits[:150], labels[:150]), Predictions.of(logits[150:], labels[150:])])
    for field in dataclasses.fields(Predictions):
        assert np.array_equal(getattr(joined, field.name), getattr(found, field.name))
    with pytest.raises(ValueError, match="cannot be joined"):
        Predictions.join([found, Predictions.of(np.eye(3), [0, 1, 2])])
    with pytest.raises(ValueError, match="cannot be joined"):
        Predictions.join([])


def test_images_that_could_not_be_read_count_in_nothing(found: Predictions) -> None:
    logits, labels = answers()
    readable = np.random.default_rng(1).random(len(labels)) < 0.7
    logits[~readable] = np.nan
    partly = Predictions.of(logits, labels, readable)
    alone = Predictions.of(logits[readable], labels[readable])
    assert partly.images == readable.sum() == len(alone)
    assert partly.unreadable.tolist() == np.flatnonzero(~readable).tolist()
    assert (partly.top1, partly.top5, partly.mean_loss) == (alone.top1, alone.top5, alone.mean_loss)
    assert (dense(partly) == dense(alone)).all()
    assert partly.per_class() == alone.per_class()
    assert partly.calibration_error() == alone.calibration_error()
    assert readable[partly.worst(1000)].all()
    assert len(partly.worst(1000)) == len(alone.worst(1000))
    assert partly.top1 != found.top1


def test_nothing_readable_is_not_a_number() -> None:
    none = Predictions.of(np.zeros((2, 3)), [0, 1], [False, False])
    assert (none.images, len(none)) == (0, 2)
    assert all(np.isnan(value) for value in (none.top1, none.top5, none.mean_loss, none.calibration_error()))
    assert dense(none).sum() == 0


def test_a_diverged_model_names_nothing_rightly_by_accident() -> None:
    logits = np.full((3, 4), np.nan)
    broken = Predictions.of(logits, [1, 2, 3])
    assert broken.top1 == 0.0
    assert np.isnan(broken.mean_loss)
    assert broken.worst(3).tolist() == [0, 1, 2]
    infinite = Predictions.of([[np.inf, 0.0]], [1])
    assert infinite.predicted.tolist() == [0]
    assert infinite.rank.tolist() == [1]


def test_arrays_that_do_not_fit_are_refused(found: Predictions) -> None:
    with pytest.raises(ValueError, match="one entry per image"):
        dataclasses.replace(found, loss=found.loss[1:])
    with pytest.raises(ValueError, match="labels from"):
        dataclasses.replace(found, labels=found.labels + CLASSES)


def test_it_needs_numpy_alone() -> None:
    heavy = "{'torch', 'torchmetrics', 'matplotlib', 'PIL'}"
    code = f"import lipsformer.evaluation.predictions, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
