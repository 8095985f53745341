"""Reference histograms: bins of equal counts, and an index that is near 0 without drift."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lipsformer.bundle.reference import Histogram, ReferenceHistograms, population_stability_index

QUIET, ALARM = 0.1, 0.25


def reference_of(generator: np.random.Generator, photos: int, classes: int) -> ReferenceHistograms:
    found = ReferenceHistograms.of(
        generator.integers(0, classes, photos), generator.beta(5, 1, photos), generator.normal(1, 0.1, photos), classes
    )
    assert found is not None
    return found


def counted(histogram: Histogram, values: np.ndarray) -> list[int]:
    return np.bincount([histogram.bin_of(value) for value in values], minlength=len(histogram.counts)).tolist()


@pytest.mark.parametrize("classes", [2, 14, 1000])
def test_bins_have_about_equal_counts_and_come_back_from_json(classes: int) -> None:
    found = reference_of(np.random.default_rng(0), 2000, classes)
    assert len(found.classes.counts) == min(classes, 20)
    assert found.distances is not None
    for histogram in (found.classes, found.scores, found.distances):
        assert sum(histogram.counts) == 2000
        assert min(histogram.counts) > 0.6 * max(histogram.counts)
    assert ReferenceHistograms.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_value_is_counted_where_it_was_counted_before() -> None:
    values = np.array([0.1, 0.2, 0.2, 0.5, 0.9])
    histogram = Histogram.of(values, np.array([0.2, 0.5]))
    assert histogram.counts == (3, 1, 1)
    assert counted(histogram, values) == [3, 1, 1]
    assert counted(histogram, np.array([-9.0, 9.0, 0.2000001])) == [1, 1, 1]


def test_scores_near_one_are_one_bin() -> None:
    scores = 1 - 10.0 ** -np.arange(4, 16)
    found = ReferenceHistograms.of(np.zeros(12, np.int64), scores, None, 3)
    assert found is not None
    assert len(found.scores.counts) == 1
    assert found.classes.counts == (12, 0, 0)


@pytest.mark.parametrize("photos", [40, 300, 10_000])
@pytest.mark.parametrize("classes", [3, 14, 1000])
def test_the_index_is_quiet_for_the_same_distribution_and_high_for_another(photos: int, classes: int) -> None:
    generator = np.random.default_rng(7)
    found = reference_of(generator, photos, classes)
    assert found.distances is not None
    same = [
        population_stability_index(found.classes.counts, counted(found.classes, generator.integers(0, classes, 1000))),
        population_stability_index(found.scores.counts, counted(found.scores, generator.beta(5, 1, 1000))),
        population_stability_index(found.distances.counts, counted(found.distances, generator.normal(1, 0.1, 1000))),
    ]
    assert max(same) < (QUIET if photos > 100 else ALARM)
    other = [
        population_stability_index(found.classes.counts, counted(found.classes, np.zeros(1000))),
        population_stability_index(found.scores.counts, counted(found.scores, generator.beta(3, 2, 1000))),
        population_stability_index(found.distances.counts, counted(found.distances, generator.normal(1.2, 0.1, 1000))),
    ]
    assert min(other) > ALARM


def test_few_answers_are_no_drift() -> None:
    found = reference_of(np.random.default_rng(0), 500, 14)
    assert population_stability_index(found.classes.counts, [0] * 14) == 0
    assert population_stability_index(found.classes.counts, [1] + [0] * 13) == 0
    assert population_stability_index([50, 50], [5000, 5000]) == 0


def test_without_finite_scores_there_is_no_reference() -> None:
    assert ReferenceHistograms.of(np.zeros(2, np.int64), np.array([np.nan, np.inf]), None, 3) is None
    assert ReferenceHistograms.of(np.zeros(0, np.int64), np.zeros(0), None, 3) is None
    some = ReferenceHistograms.of(np.array([0, 1]), np.array([0.5, np.nan]), None, 3)
    assert some is not None
    assert some.classes.counts == (1, 0, 0)
