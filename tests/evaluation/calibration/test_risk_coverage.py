"""Areas and curves, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lipsformer.evaluation.calibration.risk_coverage import area_under_risk_coverage, auroc, risk_coverage


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(0, 1, 150).round(1), generator.normal(1, 1, 90).round(1)
    pairs = (inside[:, None] < outside) + 0.5 * (inside[:, None] == outside)
    assert (inside[:, None] == outside).any()
    assert auroc(inside, outside) == pytest.approx(pairs.mean(), rel=1e-12)
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1.0)


def test_auroc_at_its_limits() -> None:
    low, high = np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    assert (auroc(low, high), auroc(high, low), auroc(low, low)) == (1.0, 0.0, 0.5)
    assert math.isnan(auroc(low, high[:0]))
    assert math.isnan(auroc(low[:0], high))


def test_the_curve_has_a_point_for_every_score() -> None:
    scores = np.random.default_rng(0).permutation(np.repeat([0.9, 0.8, 0.4, 0.1], [3, 1, 4, 2]))
    correct = scores > 0.45
    correct[np.flatnonzero(scores == 0.9)[0]] = False
    coverages, errors = risk_coverage(scores, correct)
    assert coverages == pytest.approx([0.3, 0.4, 0.8, 1.0])
    assert errors == pytest.approx([1 / 3, 1 / 4, 5 / 8, 7 / 10])
    area = 0.3 / 3 + 0.1 / 4 + 0.4 * 5 / 8 + 0.2 * 0.7
    assert area_under_risk_coverage(scores, correct) == pytest.approx(area)


def test_each_point_is_the_error_of_the_photos_above_a_threshold() -> None:
    generator = np.random.default_rng(1)
    scores = generator.random(300).round(2)
    correct = generator.random(300) < scores
    coverages, errors = risk_coverage(scores, correct)
    thresholds = sorted(set(scores.tolist()), reverse=True)
    assert coverages == pytest.approx([(scores >= threshold).mean() for threshold in thresholds])
    assert errors == pytest.approx([(~correct[scores >= threshold]).mean() for threshold in thresholds])


def test_the_area_is_the_mean_of_the_error_rates_without_ties() -> None:
    generator = np.random.default_rng(2)
    scores, correct = generator.random(200), generator.random(200) < 0.7
    ranked = ~correct[np.argsort(-scores)]
    expected = (np.cumsum(ranked) / np.arange(1, 201)).mean()
    assert area_under_risk_coverage(scores, correct) == pytest.approx(expected)
    assert area_under_risk_coverage(correct * 1.0, correct) < area_under_risk_coverage(scores, correct)


def test_without_photos_there_is_no_area() -> None:
    coverages, errors = risk_coverage(np.zeros(0), np.zeros(0, bool))
    assert coverages.shape == errors.shape == (0,)
    assert math.isnan(area_under_risk_coverage(np.zeros(0), np.zeros(0, bool)))
