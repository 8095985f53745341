"""The space of features, against known Gaussians and linear maps."""

from __future__ import annotations

import numpy as np
import pytest

from lipsformer.bundle.acceptance import FeatureSpace
from lipsformer.evaluation.calibration import feature_space as module
from lipsformer.evaluation.calibration.feature_space import fit_feature_space
from lipsformer.system.errors import InputError

CHANNELS = 12


def gaussians(images: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 12) of classes with different means and one covariance, and labels; both float32 and int64."""
    fixed, generator = np.random.default_rng(99), np.random.default_rng(seed)
    means, mix = fixed.normal(scale=20.0, size=(classes, CHANNELS)), fixed.normal(size=(CHANNELS, CHANNELS))
    labels = generator.integers(0, classes, images)
    return (means[labels] + generator.normal(size=(images, CHANNELS)) @ mix).astype(np.float32), labels


def test_squared_distances_of_new_photos_average_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    space = fit_feature_space(*gaussians(20_000), 4)
    new, _ = gaussians(20_000, seed=1)
    distances = space.distances(new)
    assert (distances**2).mean() == pytest.approx(1.0, abs=0.02)
    assert distances.mean() == pytest.approx(1.0, abs=0.05)


def test_few_images_of_many_classes_do_not_bias_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 images of each class, half of the squares is lost to the means."""
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(1000), 2)
    space = fit_feature_space(generator.normal(size=(2000, CHANNELS)).astype(np.float32), labels, 1000)
    covariance = np.linalg.inv(space.whitening.astype(np.float64) @ space.whitening.T)
    assert np.diag(covariance).mean() == pytest.approx(1.0, abs=0.03)


def test_distances_are_those_of_the_shrunk_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHRINKAGE", 0.1)
    features, labels = gaussians(300)
    space = fit_feature_space(features, labels, 4)
    residuals = features - np.stack([features[labels == k].mean(axis=0, dtype=np.float64) for k in range(4)])[labels]
    covariance = residuals.T @ residuals / (300 - 4)
    shrunk = 0.9 * covariance + 0.1 * np.diag(covariance).mean() * np.eye(CHANNELS)
    own = np.einsum("nc,cd,nd->n", residuals, np.linalg.inv(shrunk), residuals)
    assert space.distances(features) == pytest.approx(np.sqrt(own / CHANNELS), rel=1e-4)  # the own class is nearest


def test_a_linear_map_of_the_features_changes_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = gaussians(400)
    generator = np.random.default_rng(5)
    mapped = features.astype(np.float64) @ generator.normal(size=(CHANNELS, CHANNELS)) + generator.normal(size=CHANNELS)
    mapped = mapped.astype(np.float32)

    def both() -> tuple[np.ndarray, np.ndarray]:
        plain, other = fit_feature_space(features, labels, 4), fit_feature_space(mapped, labels, 4)
        return plain.distances(features), other.distances(mapped)

    assert not np.allclose(*both(), rtol=1e-2)  # shrinkage depends on the axes
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    assert np.allclose(*both(), rtol=2e-3)


def test_more_channels_than_images_are_fine() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(10, 64)).astype(np.float32), np.repeat([0, 1], 5)
    space = fit_feature_space(features, labels, 2)
    assert (space.distances(features) < space.distances(features + 10)).all()


def test_classes_without_images_have_no_mean() -> None:
    features, labels = gaussians(100, classes=3)
    space = fit_feature_space(features, labels * 2, 6)
    assert space.means.shape == (3, CHANNELS)
    assert (space.means == fit_feature_space(features, labels, 3).means).all()
    means = np.stack([features[labels == k].mean(axis=0, dtype=np.float64) for k in range(3)])
    assert space.distances(means.astype(np.float32)) == pytest.approx(np.zeros(3), abs=1e-4)


def test_the_order_of_the_images_does_not_matter() -> None:
    features, labels = gaussians(200)
    order = np.random.default_rng(0).permutation(200)
    one, other = fit_feature_space(features, labels, 4), fit_feature_space(features[order], labels[order], 4)
    assert np.allclose(one.distances(features), other.distances(features), rtol=1e-5)


def test_features_that_are_not_finite_are_left_out() -> None:
    features, labels = gaussians(200)
    broken = features.copy()
    broken[::9, 3] = np.nan
    kept = np.isfinite(broken).all(axis=1)
    found: FeatureSpace = fit_feature_space(broken, labels, 4)
    assert (found.whitening == fit_feature_space(features[kept], labels[kept], 4).whitening).all()


def test_too_few_images_and_equal_ones_are_refused() -> None:
    features, labels = gaussians(5)
    with pytest.raises(InputError, match=r"^1 images with finite features: at least 2 are needed"):
        fit_feature_space(features[:1], labels[:1], 4)
    with pytest.raises(InputError, match=r"^0 images"):
        fit_feature_space(features * np.nan, labels, 4)
    with pytest.raises(InputError, match="of 5 images do not vary within any class"):
        fit_feature_space(features, np.arange(5), 5)  # one image of each
    with pytest.raises(InputError, match="do not vary"):
        fit_feature_space(np.tile(features[:1], (5, 1)), np.zeros(5, np.int64), 4)
    with pytest.raises(ValueError, match="labels from 0 to 4, but there are 4 classes"):
        fit_feature_space(features, np.arange(5), 4)


def test_the_features_of_a_flat_head_are_refused() -> None:
    with pytest.raises(InputError, match="8192 features: distances are for at most 4096; omit --max-error"):
        fit_feature_space(np.zeros((2, 8192)), np.zeros(2, dtype=np.int64), 1)
