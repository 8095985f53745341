"""The thresholds: their guarantee on synthetic populations, and the parts that it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from lipsformer.bundle.acceptance import AcceptanceThresholds
from lipsformer.evaluation.calibration.acceptance import binomial_tail, choose_thresholds
from lipsformer.system.errors import InputError

DRAWS = 200  # of calibration photos


def allowed(confidence: float) -> float:
    """How many of the draws may break a promise: the expected number and three standard deviations."""
    return DRAWS * (1 - confidence) + 3 * math.sqrt(DRAWS * confidence * (1 - confidence))


def chosen(
    scores: np.ndarray,
    correct: np.ndarray,
    distances: np.ndarray | None = None,
    *,
    max_error: float = 0.1,
    confidence: float = 0.9,
    outliers: np.ndarray | None = None,
) -> AcceptanceThresholds:
    distances = np.ones(len(scores)) if distances is None else distances
    return choose_thresholds(
        scores, correct, distances, max_error=max_error, confidence=confidence, outlier_distances=outliers
    )


def last_accepted(values: np.ndarray, threshold: float, *, largest: float) -> bool:
    """Whether `largest` is the highest of the values within the threshold, which lies a little above it."""
    return bool(values[values <= threshold].max() == largest < threshold <= largest * 1.00101)


class Photos(NamedTuple):
    scores: np.ndarray
    distances: np.ndarray
    error: np.ndarray  # the chance that each is classified wrongly


def confident(count: int, generator: np.random.Generator) -> Photos:
    """An error of about 16% in all, which falls with the score and rises with the distance."""
    scores, distances = generator.beta(3, 1, count), generator.gamma(50, 0.02, count)
    return Photos(scores, distances, np.clip(0.75 * (1 - scores) ** 1.2 * distances**2, 0, 1))


def coarse(count: int, generator: np.random.Generator) -> Photos:
    """The same with ten different scores."""
    scores, distances, _ = confident(count, generator)
    rounded = np.ceil(scores * 10) / 10
    return Photos(rounded, distances, 0.75 * (1.05 - rounded) ** 1.2)


@pytest.mark.parametrize("population", [confident, coarse])
@pytest.mark.parametrize(("max_error", "confidence"), [(0.1, 0.9), (0.05, 0.8)])
def test_the_true_error_exceeds_the_limit_as_rarely_as_promised(
    population: Callable[[int, np.random.Generator], Photos], max_error: float, confidence: float
) -> None:
    generator = np.random.default_rng(0)
    everyone = population(300_000, generator)
    order = np.argsort(-everyone.scores)
    risk = np.cumsum(everyone.error[order]) / np.arange(1, 300_001)
    oracle = float((risk <= max_error).mean())  # the coverage of the best score threshold
    exceeded, coverage = 0, 0.0
    for _ in range(DRAWS):
        scores, distances, error = population(2000, generator)
        correct = generator.random(2000) >= error
        try:
            found = chosen(scores, correct, distances, max_error=max_error, confidence=confidence)
        except InputError:
            continue
        accepted = (everyone.scores >= found.min_score) & (everyone.distances <= found.max_distance)
        exceeded += float(everyone.error[accepted].mean()) > max_error
        coverage += float(accepted.mean()) / DRAWS
        assert abs(found.coverage - accepted.mean()) < 0.06
    assert exceeded <= allowed(confidence)
    assert coverage >= oracle / 2


@pytest.mark.parametrize(("max_error", "confidence"), [(0.1, 0.9), (0.03, 0.8)])
def test_a_score_that_says_nothing_is_accepted_as_rarely_as_promised(max_error: float, confidence: float) -> None:
    """The error is too large at every score, so that each choice breaks the promise."""
    generator, accepted = np.random.default_rng(1), 0
    for _ in range(DRAWS):
        correct = generator.random(1000) >= 1.0001 * max_error
        try:
            chosen(generator.random(1000), correct, max_error=max_error, confidence=confidence)
        except InputError:
            continue
        accepted += 1
    assert 0 < accepted <= allowed(confidence)


def test_a_new_photo_is_familiar_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        distances = generator.gamma(5, 0.2, 250)
        found = chosen(np.ones(250), np.ones(250, bool), distances)
        rates.append((generator.gamma(5, 0.2, 2000) <= found.max_distance).mean())
    # rank ceil(251 * 0.99) = 249 of 250: a new one is within it with a probability of 249/251
    assert np.mean(rates) == pytest.approx(249 / 251, abs=1e-3)


@pytest.mark.parametrize(("count", "rank"), [(60, 60), (99, 99), (198, 198), (199, 198), (1000, 991)])
def test_the_distance_is_the_conformal_quantile(count: int, rank: int) -> None:
    distances = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    found = chosen(np.ones(count), np.ones(count, bool), distances)
    assert last_accepted(distances, found.max_distance, largest=rank)


def test_outliers_set_the_distance_where_they_are_separated_best() -> None:
    generator = np.random.default_rng(0)
    photos, outliers = generator.normal(3, 0.5, 400).round(1), generator.normal(4, 0.5, 150).round(1)
    found = chosen(np.ones(400), np.ones(400, bool), photos, outliers=outliers)
    index = {value: (photos <= value).mean() - (outliers <= value).mean() for value in np.arange(10, 60) / 10}
    assert index[photos[photos <= found.max_distance].max()] == pytest.approx(max(index.values()))
    assert found.coverage == (photos <= found.max_distance).mean()
    assert 3.2 < found.max_distance < 3.8


def test_of_equally_good_distances_the_larger_one_is_chosen() -> None:
    """0.4 - 0.1 is as much as 0.5 - 0.2, but not in floating point."""
    assert 0.4 - 0.1 > 0.5 - 0.2
    photos, outliers = np.repeat([1.0, 2.0, 3.0], [40, 10, 50]), np.repeat([0.5, 2.0, 2.5], [1, 1, 8])
    found = chosen(np.ones(100), np.ones(100, bool), photos, outliers=outliers)
    assert last_accepted(photos, found.max_distance, largest=2.0)


def test_an_outlier_just_above_is_not_accepted() -> None:
    photos, outliers = np.full(100, 2.0), np.full(50, 2.0001)
    found = chosen(np.ones(100), np.ones(100, bool), photos, outliers=outliers)
    assert 2.0 < found.max_distance < 2.0001


def test_no_outliers_are_the_same_as_an_empty_array() -> None:
    distances = np.arange(1.0, 501)
    given = np.ones(500), np.ones(500, bool), distances
    assert chosen(*given, outliers=np.zeros(0)) == chosen(*given)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("errors", "photos"), [(0, 1), (1, 1), (0, 40), (2, 130), (17, 300), (60, 900), (299, 300)])
def test_the_binomial_tail_is_exact(errors: int, photos: int, rate: float) -> None:
    chance = Fraction(rate)
    terms = (math.comb(photos, j) * chance**j * (1 - chance) ** (photos - j) for j in range(errors + 1))
    exact = float(sum(terms, Fraction(0)))
    assert binomial_tail(errors, photos, rate) == pytest.approx(exact, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(("errors", "halvings"), [(700, 6), (6200, 3), (10, 10)])
def test_the_binomial_tail_of_many_photos_is_exact(errors: int, halvings: int) -> None:
    """The rate is 1 / 2^halvings, so that all probabilities are integers over one denominator."""
    photos, against = 50_000, 2**halvings - 1
    term = total = against**photos
    for j in range(1, errors + 1):
        term = term * (photos - j + 1) // (j * against)
        total += term
    assert binomial_tail(errors, photos, 0.5**halvings) == pytest.approx(total / 2 ** (halvings * photos), rel=1e-12)


def test_certain_tails_do_not_overflow() -> None:
    assert binomial_tail(0, 50_000, 0.5) == 0.0
    assert binomial_tail(49_999, 50_000, 0.01) == 1.0


def ranked(*groups: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled photos with different scores: of each group (right, wrong), the right ones score higher."""
    correct = np.concatenate([np.arange(right + wrong) < right for right, wrong in groups])
    order = np.random.default_rng(0).permutation(len(correct))
    return np.linspace(0.95, 0.05, len(correct))[order], correct[order]


def test_all_are_accepted_if_every_test_passes() -> None:
    found = chosen(*ranked((960, 40)))
    assert (found.min_score, found.coverage, found.photos) == (0.0, 1.0, 1000)
    assert (found.max_error, found.confidence) == (0.1, 0.9)


def test_the_threshold_is_the_last_score_that_passes() -> None:
    scores, correct = ranked((600, 0), (0, 400))
    found = chosen(scores, correct)
    accepted = round(found.coverage * 1000)
    wrong = accepted - 600
    refused, last = np.sort(scores)[[-accepted - 1, -accepted]]
    assert refused < found.min_score < last
    assert binomial_tail(wrong, accepted, 0.1) <= 0.1 < binomial_tail(wrong + 10, accepted + 10, 0.1)


def test_a_failed_test_is_the_last() -> None:
    """Although all the photos together would pass."""
    scores, correct = ranked((300, 0), (0, 60), (640, 0))
    assert binomial_tail(60, 1000, 0.1) < 1e-4
    assert 0.3 <= chosen(scores, correct).coverage < 0.36


def test_equal_scores_are_accepted_together() -> None:
    """All but the first 200 score the same, and every second of them is wrong."""
    scores = np.concatenate([np.linspace(0.9, 0.8, 200), np.full(300, 0.5)])
    correct = np.concatenate([np.ones(350, bool), np.zeros(150, bool)])  # a part of the group would pass
    found = chosen(scores, correct)
    assert 0.8 <= found.min_score < 0.803
    assert found.coverage >= 0.39
    correct[350:490] = True
    assert chosen(scores, correct).coverage == 1.0


def test_only_photos_within_the_distance_count() -> None:
    """The 100 photos with the highest scores are all wrong, but as far as the outliers."""
    scores, correct = ranked((0, 100), (900, 0))
    distances = np.where(correct, 1.0, 5.0)
    found = chosen(scores, correct, distances, outliers=np.full(50, 5.0))
    assert last_accepted(distances, found.max_distance, largest=1.0)
    assert (found.min_score, found.coverage) == (0.0, 0.9)
    with pytest.raises(InputError, match="classified wrongly"):
        chosen(scores, correct, distances)


def test_photos_without_a_finite_score_or_distance_are_not_accepted() -> None:
    scores, correct = ranked((960, 40))
    distances = np.linspace(0.5, 1.5, 1000)
    scores[:100], distances[50:250] = np.nan, np.nan
    found = chosen(scores, correct, distances)
    assert found == AcceptanceThresholds(
        min_score=0.0,
        # rank ceil(751 * 0.99) = 744 of the last 750, and half way to the next
        max_distance=float(distances[250 + 743] + distances[250 + 744]) / 2,
        max_error=0.1,
        confidence=0.9,
        coverage=0.744,
        photos=1000,
    )
    with pytest.raises(InputError, match="none of 1000 photos has a finite score and distance"):
        chosen(scores * np.nan, correct)


def test_too_few_photos_are_refused_with_the_number_that_is_needed() -> None:
    ones = np.linspace(0.9, 0.1, 22)
    assert 0.9**21 > 0.1 > 0.9**22
    assert chosen(ones, np.ones(22, bool)).coverage == 1.0
    with pytest.raises(InputError, match=r"^21 photos are too few to show an error of at most 0.1 with confidence 0.9"):
        chosen(ones[:21], np.ones(21, bool))
    with pytest.raises(InputError, match=r"without a mistake it takes 22; give more photos or a larger --max-error$"):
        chosen(ones[:1], np.ones(1, bool))


def test_too_many_mistakes_at_the_highest_scores_are_refused() -> None:
    first = 61  # the fewest photos that may hold 2 mistakes: half of the level is for them
    assert binomial_tail(2, first, 0.1) <= 0.05 < binomial_tail(2, first - 1, 0.1)
    assert chosen(*ranked((first - 2, 2), (400, 0))).coverage == 1.0
    with pytest.raises(InputError, match=r"^1 of the 22 photos with the highest scores are classified wrongly"):
        chosen(*ranked((21, 1)))
    with pytest.raises(InputError, match=r"^20 of the 100 photos with the highest scores are classified wrongly"):
        chosen(*ranked((56, 5), (24, 15), (300, 0)))  # first 5 of 61, then 20 of 100


def test_the_most_certain_answers_may_be_worse_than_the_rest() -> None:
    """The tests start a second time at a quarter of the photos, with half of the level."""
    scores, correct = ranked((49, 3), (395, 5))
    assert binomial_tail(3, 61, 0.1) > 0.05  # the first start fails
    assert chosen(scores, correct).coverage == 1.0
    assert binomial_tail(6, 113, 0.1) > 0.05 > binomial_tail(5, 113, 0.1)
    with pytest.raises(InputError, match=r"^6 of the 113 photos"):
        chosen(*ranked((49, 3), (58, 3), (339, 0)))


@pytest.mark.parametrize(("max_error", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.1, 0.0), (0.1, 1.0), (math.nan, 0.5)])
def test_shares_out_of_range_are_refused(max_error: float, confidence: float) -> None:
    with pytest.raises(InputError, match="each must be between 0 and 1"):
        chosen(np.ones(100), np.ones(100, bool), max_error=max_error, confidence=confidence)
