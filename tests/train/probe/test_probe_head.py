"""The fit of a head: at the optimum, for any start, weights and labels; penalties and folds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lipsformer.train.probe import penalty as penalties
from lipsformer.train.probe.features import Features
from lipsformer.train.probe.head import BIAS_PENALTY, Head, Samples, fit_head
from lipsformer.train.probe.penalty import PENALTIES, PathPoint, best_point, measure, penalty_path
from lipsformer.train.probe.samples import Axes, Division, divide_in_folds, samples_of, stratified_folds

CLASSES, IMAGES, VIEWS, CHANNELS = 4, 40, 3, 6
CPU = torch.device("cpu")


@pytest.fixture
def labels() -> np.ndarray:
    return np.repeat(np.arange(CLASSES), IMAGES // CLASSES)


@pytest.fixture
def features(labels: np.ndarray) -> Features:
    """Correlated features around a center for each class, one of them constant."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, CHANNELS, generator=generator)
    noise = torch.randn(IMAGES, VIEWS, CHANNELS, generator=generator)
    values = (centers[labels][:, None] + noise) @ torch.randn(CHANNELS, CHANNELS, generator=generator) * 5 + 3
    values[..., 2] = 0.7
    return Features(values=values, readable=torch.ones(IMAGES, dtype=torch.bool))


@pytest.fixture
def samples(features: Features, labels: np.ndarray) -> Samples:
    return samples_of(features, labels, CLASSES, Axes.of(features, CPU), balanced=False)


def gradient(head: Head, samples: Samples, penalty: float, smoothing: float) -> float:
    """The largest entry of the objective's gradient, in closed form."""
    targets = np.eye(CLASSES)[samples.labels.numpy()] * (1 - smoothing) + smoothing / CLASSES
    logits = samples.features.numpy() @ head.weight.numpy().T + head.bias.numpy()
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    errors = (shares - targets) * samples.weights.numpy()[:, None]
    of_weight = errors.T @ samples.features.numpy() + penalty * head.weight.numpy()
    return max(abs(of_weight).max(), abs(errors.sum(axis=0) + BIAS_PENALTY * head.bias.numpy()).max())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-3])
def test_a_fit_ends_where_the_gradient_vanishes(samples: Samples, penalty: float, smoothing: float) -> None:
    uneven = dataclasses.replace(samples, weights=torch.linspace(1, 3, len(samples.labels), dtype=torch.float64))
    uneven = dataclasses.replace(uneven, weights=uneven.weights / uneven.weights.sum())
    head = fit_head(uneven, penalty, label_smoothing=smoothing)
    assert head.converged
    assert gradient(head, uneven, penalty, smoothing) < 5e-5
    assert gradient(head, uneven, 2 * penalty, smoothing) > 5e-4  # the penalty counts


def test_the_start_does_not_change_the_result(samples: Samples) -> None:
    cold = fit_head(samples, 1e-2)
    warm = fit_head(samples, 1e-2, start=fit_head(samples, 1.0))
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(warm.bias, cold.bias, atol=1e-3, rtol=1e-3)
    assert fit_head(samples, 1e-2, start=cold).iterations <= 1


def test_the_same_fit_gives_the_same_bits(samples: Samples) -> None:
    assert torch.equal(fit_head(samples, 1e-3).weight, fit_head(samples, 1e-3).weight)


def test_the_head_for_raw_features_gives_the_same_logits(features: Features, samples: Samples) -> None:
    head = fit_head(samples, 1e-2)
    raw = Axes.of(features, CPU).head_before(head)
    logits = raw.logits(features.values.flatten(0, 1).double())
    torch.testing.assert_close(logits, head.logits(samples.features), atol=1e-9, rtol=1e-9)
    assert raw.weight.abs().max() < 1e3  # the constant feature has none of it


def test_a_channel_that_hardly_varies_gets_no_large_weight(features: Features, labels: np.ndarray) -> None:
    """A fine-tuning that continues from the head would change the logits at its first step by as much."""
    features.values[..., 2] = 0.7 + 1e-4 * features.values[..., 1]  # still separates classes
    axes = Axes.of(features, CPU)
    head = axes.head_before(fit_head(samples_of(features, labels, CLASSES, axes, balanced=False), 1e-4))
    others = head.weight[:, [0, 1, 3, 4, 5]]
    assert head.weight[:, 2].abs().max() < others.abs().max()


def test_constant_features_alone_give_a_finite_head(labels: np.ndarray) -> None:
    rounding = 1e-7 * torch.randn(IMAGES, VIEWS, CHANNELS, generator=torch.Generator().manual_seed(0))
    values = 0.7 * (1 + rounding)
    constant = Features(values=values, readable=torch.ones(IMAGES, dtype=torch.bool))
    axes = Axes.of(constant, CPU)
    head = axes.head_before(fit_head(samples_of(constant, labels, CLASSES, axes, balanced=False), 1e-2))
    assert head.weight.abs().max() < 1e-3


def test_features_along_the_axes_are_uncorrelated(samples: Samples) -> None:
    covariance = samples.features.T @ samples.features / len(samples.features)
    torch.testing.assert_close(covariance, samples.variances.diag(), atol=1e-9, rtol=0)


def test_a_class_without_images_is_finite_and_never_predicted(features: Features, labels: np.ndarray) -> None:
    axes = Axes.of(features, CPU)
    samples = samples_of(features, labels, CLASSES + 1, axes, balanced=True)
    head = fit_head(samples, 1e-2)
    assert head.converged
    assert head.bias.isfinite().all()
    assert CLASSES not in head.logits(samples.features).argmax(dim=1)


def test_balanced_classes_weigh_the_same_and_unreadable_images_nothing(features: Features, labels: np.ndarray) -> None:
    readable = torch.ones(IMAGES, dtype=torch.bool)
    readable[:7] = False  # of class 0
    damaged = dataclasses.replace(features, readable=readable)
    for balanced, share in ((True, 1 / CLASSES), (False, 3 / 33)):
        samples = samples_of(damaged, labels, CLASSES, Axes.of(damaged, CPU), balanced=balanced)
        assert len(samples.labels) == 33 * VIEWS
        assert float(samples.weights[samples.labels == 0].sum()) == pytest.approx(share)
        assert float(samples.weights.sum()) == pytest.approx(1.0)


def test_folds_are_contiguous_parts_of_each_class() -> None:
    labels = np.array([0, 1, 0, 0, 2, 1, 0, 0, 1])
    assert stratified_folds(labels).tolist() == [0, 0, 1, 2, -1, 1, 3, 4, 3]


def test_what_is_held_out_is_not_fitted(samples: Samples) -> None:
    divisions = divide_in_folds(samples, VIEWS)
    assert len(divisions) == 5
    held_out = torch.stack([division.fitted.weights == 0 for division in divisions])
    assert (held_out.sum(dim=0) == 1).all()  # each sample once
    assert (held_out.view(5, IMAGES, VIEWS).float().std(dim=2) == 0).all()  # with all views of its image
    for division, chosen in zip(divisions, held_out, strict=True):
        assert torch.equal(division.held_out.features, samples.features[chosen][::VIEWS])  # the first view alone
        assert float(division.fitted.weights.sum()) == pytest.approx(1.0)
    assert sum(float(division.held_out.weights.sum()) for division in divisions) == pytest.approx(1.0)


@pytest.mark.parametrize("last", [1.5, 1.0, 0.9995])  # the last falls by less than 1e-3
def test_a_path_ends_once_the_held_out_loss_falls_no_more(
    last: float, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 1.0, last, 0.1])
    monkeypatch.setattr(
        penalties, "measure", lambda head, given: (0.0, 0.0) if given is samples else (next(losses), 0.5)
    )
    seen: list[PathPoint] = []
    points = penalty_path([Division(fitted=samples, held_out=dataclasses.replace(samples))], 0.0, seen.append)
    assert seen == points
    assert [point.held_out_loss for point in points] == [3.0, 2.0, 1.0, last]
    assert best_point(points).penalty == PENALTIES[3 if last < 1.0 else 2]


def test_measures_are_weighted(samples: Samples) -> None:
    head = fit_head(samples, 1e-2)
    first = dataclasses.replace(samples, weights=torch.eye(len(samples.labels), dtype=torch.float64)[0])
    loss, top1 = measure(head, first)
    logits = head.logits(samples.features[:1])
    assert loss == pytest.approx(-float(logits.log_softmax(dim=1)[0, samples.labels[0]]))
    assert top1 == float(logits.argmax() == samples.labels[0])
