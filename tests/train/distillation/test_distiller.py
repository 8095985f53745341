"""The distillation loss, and how classes are matched."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from lipsformer import InputError, Preprocessing
from lipsformer.train.distillation.distiller import Distiller, match_classes
from lipsformer.train.distillation.settings import Distillation
from lipsformer.train.distillation.teacher import Teacher
from lipsformer.train.distillation.view import InputFormat

STUDENT = Preprocessing(image_size=8)
LOGITS = torch.tensor([[1.0, 2.0, 9.0, 0.5], [0.0, -1.0, 5.0, 3.0]])
FULL = contextlib.nullcontext()


def teacher(*classes: str) -> Teacher:
    return Teacher(
        name="t.onnx",
        infer=lambda images: LOGITS[: len(images)],
        input=InputFormat.of(STUDENT, torch.float32),
        outputs=4,
        classes=classes,
        sha256="",
        runs_on="nothing",
    )


def distiller(kind: str, *classes: str, temperature: float = 2.0) -> Distiller:
    settings = Distillation(teacher="t.onnx", kind=kind, temperature=temperature)  # type: ignore[arg-type]
    return Distiller(settings, teacher("a", "b", "c", "d"), classes, STUDENT, torch.device("cpu"))


def test_classes_are_matched_by_name_and_the_others_dropped_before_the_softmax() -> None:
    found = distiller("logits", "d", "a")
    targets = found.targets(torch.zeros(2, 3, 8, 8), FULL)
    assert torch.equal(targets, LOGITS[:, [3, 0]])
    assert "2 classes matched by name, its other 2 are dropped" in str(found)


def test_the_loss_is_hintons_summed_over_the_images() -> None:
    found = distiller("logits", "a", "b", "c", "d", temperature=3.0)
    student = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    p, q = (F.softmax(logits.double() / 3, dim=1) for logits in (LOGITS, student))
    wanted = 9 * (p * (p.log() - q.log())).sum()
    assert found.loss(student, LOGITS).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found.loss(LOGITS, LOGITS).item() == pytest.approx(0, abs=1e-6)


def test_features_are_standardized_for_each_image() -> None:
    found = distiller("features", "anything")
    targets = found.targets(torch.zeros(2, 3, 8, 8), FULL)
    assert torch.allclose(targets.mean(dim=1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(targets.var(dim=1, unbiased=False), torch.ones(2), atol=1e-4)
    assert found.features == 4
    assert found.loss(targets + 0.5, targets).item() == pytest.approx(2 * 0.25)


def test_names_are_compared_in_one_unicode_form() -> None:
    assert match_classes(teacher("caf\u00e9", "b"), ["b", "cafe\u0301"]) == [1, 0]


def test_missing_unknown_and_ambiguous_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r'does not know 2 of 3 classes \(.x., .y.\); .*kind = "features"'):
        match_classes(teacher("a", "b"), ["a", "x", "y"])
    with pytest.raises(InputError, match="its class names are unknown; name their file as classes"):
        match_classes(teacher(), ["a"])
    with pytest.raises(InputError, match="it has the class 'a' more than once"):
        match_classes(teacher("a", "a", "b"), ["a"])
    assert match_classes(teacher("a", "a", "b"), ["b"]) == [2]
