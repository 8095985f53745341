"""Where the classes are in the space of pooled features, so that photos far from all of them can be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.bundle.acceptance import FeatureSpace
from lipsformer.system.errors import InputError

__all__ = ["fit_feature_space"]

MOST_FEATURES = 4096  # beyond it the covariance takes gigabytes; only flat heads read as many
SHRINKAGE = 0.01  # weight of the identity in the covariance; measured in benchmarks/acceptance


def fit_feature_space(
    features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], classes: int
) -> FeatureSpace:
    """The means of the classes and their shared covariance (Lee et al. 2018), for Mahalanobis distances.

    The covariance within the classes is estimated without bias, and shrunk: (1 - s) covariance + s v I, with
    s = `SHRINKAGE` and v the mean variance of a channel. Therefore it is invertible for any number of images. Images
    with features that are not finite are left out, and classes without images have no mean.

    Args:
        features: (N, C), of any floating-point type; computed in float64.
        labels: (N,) indices of the true classes.
        classes: their number.

    Raises:
        InputError: if there are fewer than 2 images, or the features do not vary within any class or are too many.
        ValueError: if a label is not one of `classes` classes.
    """
    if features.shape[1] > MOST_FEATURES:
        raise InputError(
            f"{features.shape[1]} features: distances are for at most {MOST_FEATURES}; omit --max-error, or train with "
            "model.pooling='mean'"
        )
    finite = np.isfinite(features).all(axis=1)
    features, labels = features[finite], labels[finite]
    if len(features) < 2:
        raise InputError(f"{len(features)} images with finite features: at least 2 are needed; give more photos")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, but there are {classes} classes")
    channels = features.shape[1]
    means, scatter = [], np.zeros((channels, channels))
    order = np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        own = features[rows].astype(np.float64)
        means.append(own.mean(axis=0))
        own -= means[-1]
        scatter += own.T @ own
    covariance = scatter / max(len(features) - len(means), 1)
    variance = np.trace(covariance) / channels
    if not variance > 0:
        raise InputError(
            f"the features of {len(features)} images do not vary within any class; "
            "give several different photos of each class"
        )
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * np.eye(channels)
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk)).T.astype(np.float32)
    # the means by the rounded matrix, which whitens the photos too
    whitened = (np.stack(means) @ whitening.astype(np.float64)).astype(np.float32)
    return FeatureSpace(means=whitened, whitening=np.ascontiguousarray(whitening))
