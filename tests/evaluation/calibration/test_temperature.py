"""The temperature, against known ones, a search over a grid, and itself in several processes."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from lipsformer.evaluation.calibration import temperature as module
from lipsformer.evaluation.calibration.temperature import fit_temperature


def sampled(images: int, classes: int = 5, *, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K), and labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3.0, size=(images, classes))
    noise = generator.gumbel(size=logits.shape)  # the largest sum with it is a draw from the softmax
    return logits, (logits / temperature + noise).argmax(axis=1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = logits / temperature
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


class ThreadTotals:
    """Sums over threads that stand for processes; the order in which they add differs from run to run."""

    def __init__(self, processes: int) -> None:
        self.barrier = Barrier(processes, timeout=60)
        self.parts: list[np.ndarray | None] = [None] * processes
        self.calls = [0] * processes

    def __call__(self, process: int, values: np.ndarray) -> np.ndarray:
        self.parts[process] = values
        self.calls[process] += 1
        self.barrier.wait()
        result = np.sum([part for part in self.parts if part is not None], axis=0)
        self.barrier.wait()
        return result


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    logits, labels = sampled(20_000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_the_minimum_on_a_grid(seed: int) -> None:
    logits, labels = sampled(1000, temperature=[0.3, 1.7, 9.0][seed], seed=seed)
    found = fit_temperature(logits, labels)
    grid = np.geomspace(0.05, 20, 601)
    best = grid[np.argmin([cross_entropy(logits, labels, value) for value in grid])]
    assert found == pytest.approx(best, rel=0.011)  # neighbors differ by 1.0%
    near = [cross_entropy(logits, labels, found * factor) for factor in (0.999, 1.0, 1.001)]
    assert near[1] == min(near)
    assert found == float(f"{found:.4g}")


def test_temperatures_outside_the_limits_are_clipped() -> None:
    logits, labels = sampled(2000, temperature=1.0)
    assert fit_temperature(logits * 1e-3, labels) == 0.05
    assert fit_temperature(logits * 1e3, labels) == 20.0
    assert fit_temperature(logits, (-logits).argmax(axis=1)) == 20.0  # always the least probable class


@pytest.mark.parametrize("margin", [0.5, 30.0, 4000.0])
def test_one_mistake_of_many_images_is_enough_for_a_minimum(margin: float) -> None:
    """With a margin m in all images, the share of mistakes p is the softmax probability: T = m / log((1 - p) / p)."""
    labels = np.zeros(100_000, np.int64)
    logits = np.tile([margin, 0.0], (len(labels), 1))
    logits[77] = [0.0, margin]
    expected = np.clip(margin / np.log(99_999), 0.05, 20.0)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("images", [300, 1500])
@pytest.mark.parametrize("shares", [(0.2, 0.5), (0.0, 0.9), (0.0, 0.0)])
def test_processes_get_the_same_bits_as_one(images: int, shares: tuple[float, float]) -> None:
    logits, labels = sampled(images, temperature=2.0, seed=1)
    logits = logits.astype(np.float32)
    logits[5, 2] = np.nan
    expected = fit_temperature(logits, labels)
    assert expected > 1.5
    shuffled = np.random.default_rng(0).permutation(images)
    parts = np.split(shuffled, [int(share * images) for share in shares])
    totals = ThreadTotals(3)

    def one(process: int) -> float:
        rows = parts[process]
        return fit_temperature(logits[rows], labels[rows], lambda values: totals(process, values), positions=rows)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == [expected] * 3
    assert len(set(totals.calls)) == 1


def test_positions_alone_assign_images_to_folds() -> None:
    """All images in one fold: without them there is nothing to fit to."""
    logits, labels = sampled(200, temperature=3.0)
    assert fit_temperature(logits, labels) > 2
    assert fit_temperature(logits, labels, positions=np.arange(200) * module.FOLDS) == 1.0


def test_few_images_keep_the_probabilities_unless_it_helps() -> None:
    """Of small sets that need no temperature, most keep 1, and hardly any of those that need it."""
    right = [fit_temperature(*sampled(40, temperature=1.0, seed=seed)) for seed in range(40)]
    wrong = [fit_temperature(*sampled(40, temperature=4.0, seed=seed)) for seed in range(40)]
    assert right.count(1.0) >= 20
    assert wrong.count(1.0) <= 2


def test_many_images_are_fitted_without_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [seed for seed in range(10) if fit_temperature(*sampled(40, temperature=1.0, seed=seed)) == 1.0]
    assert kept
    monkeypatch.setattr(module, "FEW_IMAGES", 40)
    assert all(fit_temperature(*sampled(40, temperature=1.0, seed=seed)) != 1.0 for seed in kept)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_predicted_classes_stay_the_same(dtype: type[np.floating]) -> None:
    logits, labels = sampled(1200, 20, temperature=3.3)
    logits = logits.astype(dtype)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(3.3, rel=0.1)
    assert ((logits.astype(np.float64) / found).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, labels = sampled(1200, temperature=2.0)
    broken = logits.copy()
    broken[::7, 1], broken[3::7, 0] = np.nan, np.inf
    finite = np.isfinite(broken).all(axis=1)
    assert fit_temperature(broken, labels, positions=np.arange(1200)) == fit_temperature(
        logits[finite], labels[finite], positions=np.flatnonzero(finite)
    )
    assert fit_temperature(np.full_like(logits, np.nan), labels) == 1.0


@pytest.mark.parametrize("images", [0, 1, 4, 1200])
def test_without_a_mistake_the_probabilities_are_kept(images: int) -> None:
    logits, _ = sampled(images, temperature=1.0)
    assert fit_temperature(logits, logits.argmax(axis=1) if images else np.zeros(0, np.int64)) == 1.0
    assert fit_temperature(np.full_like(logits, 0.1), np.zeros(images, np.int64)) == 1.0


def test_memory_is_that_of_a_chunk() -> None:
    logits = np.random.default_rng(0).normal(size=(16_000, 500)).astype(np.float32)
    labels = np.arange(16_000) % 500
    images = module.Images(logits, labels, np.arange(len(logits)))
    tracemalloc.start()
    images.derivatives(0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < logits.nbytes / 3


def test_derivatives_are_those_of_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)  # several chunks
    logits, labels = sampled(300, temperature=1.0)
    images = module.Images(logits, labels, np.arange(0, 300, 2))
    step = 1e-4
    low, middle, high = (images.cross_entropy(0.7 + offset) for offset in (-step, 0.0, step))
    assert middle == pytest.approx(150 * cross_entropy(logits[::2], labels[::2], 1 / 0.7))
    slope, curvature = images.derivatives(0.7)
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert curvature == pytest.approx((high - 2 * middle + low) / step**2, rel=1e-4)
