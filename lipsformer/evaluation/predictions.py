"""Per-image predictions of a model on labeled images, and the metrics computed from them.

Uses NumPy only: training gathers these arrays from its processes, and `lipsformer eval` fills them from any runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CALIBRATION_BINS", "UNREAD", "ClassPredictions", "ConfusionPairs", "Predictions", "confidence_bins"]

CALIBRATION_BINS = 15
UNREAD = -1  # the predicted class of an image that could not be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassPredictions:
    """Metrics of the class with index `index`; a share of nothing is None.

    `accuracy` is the share of the class's images that were classified correctly (its recall). `precision` is the share
    of the images classified as this class that belong to it. `confused` of its images were classified as
    `confused_with`, the class that it is most often mistaken for; None if it never is.
    """

    index: int
    images: int
    accuracy: float | None
    precision: float | None
    f1: float | None
    confused_with: int | None
    confused: int


class ConfusionPairs(NamedTuple):
    """The cells of a confusion matrix that are not 0, row by row: with many classes nearly all are 0.

    `images[i]` images of class `true[i]` were classified as `predicted[i]`; all three are int64 (P,).
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    images: NDArray[np.int64]

    def mistakes(self) -> ConfusionPairs:
        """The pairs of two different classes, the most frequent first; ties row by row."""
        wrong = np.flatnonzero(self.true != self.predicted)
        order = wrong[np.argsort(-self.images[wrong], kind="stable")]
        return ConfusionPairs(self.true[order], self.predicted[order], self.images[order])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions for N images, in the order of their split.

    An image that could not be read has `predicted` -1. It counts in no metric, and its other entries mean nothing.

    Raises:
        ValueError: if the arrays differ in length, or a label is not one of `classes` classes.
    """

    labels: NDArray[np.int64]  # (N,)
    predicted: NDArray[np.int64]  # (N,)
    # (N,), how many classes scored above the true one; of equal scores the lower index is above
    rank: NDArray[np.int64]
    loss: NDArray[np.float64]  # (N,), cross entropy in nats
    confidence: NDArray[np.float64]  # (N,), softmax probability of the predicted class
    classes: int

    def __post_init__(self) -> None:
        for name in ("labels", "predicted", "rank"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))
        for name in ("loss", "confidence"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        shapes = {array.shape for array in (self.labels, self.predicted, self.rank, self.loss, self.confidence)}
        if shapes != {(len(self.labels),)}:
            raise ValueError(f"predictions: the arrays have the shapes {shapes}; one entry per image is needed")
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise ValueError(
                f"predictions: labels from {self.labels.min()} to {self.labels.max()}, not below {self.classes}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, logits: ArrayLike, labels: ArrayLike, readable: ArrayLike | None = None) -> Self:
        """Predictions from `logits` (N, K) for images of the classes `labels` (N,).

        Args:
            logits: of any floating-point type; NaN ranks below everything.
            labels: indices of the true classes.
            readable: (N,) booleans, all true by default; the logits of an unreadable image are ignored.
        """
        scores = np.asarray(logits, np.float64)
        true = np.asarray(labels, np.int64)
        classes, rows = scores.shape[1], np.arange(len(scores))
        ordered = np.where(np.isnan(scores), -np.inf, scores)
        own = ordered[rows, true][:, None]
        above = (ordered > own) | ((ordered == own) & (np.arange(classes) < true[:, None]))
        predicted = ordered.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)  # of equal scores, the first
        with np.errstate(invalid="ignore", over="ignore"):  # a loss may be infinite or NaN
            shifted = scores - scores.max(axis=1, keepdims=True, initial=-np.inf)
            log_total = np.log(np.exp(shifted).sum(axis=1))
            loss, confidence = log_total - shifted[rows, true], np.exp(shifted[rows, predicted] - log_total)
        if readable is not None:
            predicted = np.where(np.asarray(readable, bool), predicted, UNREAD)
        return cls(
            labels=true, predicted=predicted, rank=above.sum(axis=1), loss=loss, confidence=confidence, classes=classes
        )

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Self:
        """Concatenate the predictions of several batches.

        Raises:
            ValueError: if there are none, or their numbers of classes differ.
        """
        classes = {part.classes for part in parts}
        if len(classes) != 1:
            raise ValueError(f"predictions: parts of {sorted(classes)} classes cannot be joined")
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("labels", "predicted", "rank", "loss", "confidence")
        }
        return cls(classes=classes.pop(), **arrays)

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(N,) whether the image could be read, and therefore counts."""
        return np.not_equal(self.predicted, UNREAD)

    @property
    def images(self) -> int:
        """Number of images that count."""
        return int(self.counted.sum())

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """Positions of the images that could not be read."""
        return np.flatnonzero(~self.counted)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the image was classified correctly."""
        return np.equal(self.predicted, self.labels)

    @property
    def top1(self) -> float:
        """Top-1 accuracy; NaN if no image could be read."""
        return self._mean(self.correct)

    @property
    def top5(self) -> float:
        """Top-5 accuracy; NaN if no image could be read."""
        return self._mean(self.rank < 5)

    @property
    def mean_loss(self) -> float:
        """Mean cross entropy in nats; not finite if it is not for one image."""
        return self._mean(self.loss)

    def confusion(self) -> ConfusionPairs:
        """The confusion matrix, sparse."""
        cells, images = np.unique(
            self.labels[self.counted] * self.classes + self.predicted[self.counted], return_counts=True
        )
        return ConfusionPairs(*np.divmod(cells, self.classes), images)

    def per_class(self) -> tuple[ClassPredictions, ...]:
        """The metrics of each class, in order."""
        images, predicted, correct = (
            np.bincount(classes, minlength=self.classes)
            for classes in (self.labels[self.counted], self.predicted[self.counted], self.labels[self.correct])
        )
        mistakes = self.confusion().mistakes()
        mistaken, first = np.unique(mistakes.true, return_index=True)
        most = zip(mistakes.predicted[first].tolist(), mistakes.images[first].tolist(), strict=True)
        worst = dict(zip(mistaken.tolist(), most, strict=True))
        return tuple(
            ClassPredictions(
                index=k,
                images=int(images[k]),
                accuracy=_share(correct[k], images[k]),
                precision=_share(correct[k], predicted[k]),
                f1=_share(2 * correct[k], images[k] + predicted[k]),
                confused_with=confused_with,
                confused=confused,
            )
            for k in range(self.classes)
            for confused_with, confused in (worst.get(k, (None, 0)),)
        )

    def calibration_error(self, bins: int = CALIBRATION_BINS) -> float:
        """Expected calibration error (Guo et al. 2017): the mean distance of confidence from accuracy.

        Images are sorted into `bins` equal intervals of confidence. Each contributes the distance between its mean
        confidence and its accuracy, weighted by its share of the images.
        """
        confidence, correct = self.confidence[self.counted], self.correct[self.counted]
        if not np.isfinite(confidence).all() or not len(confidence):
            return float("nan")
        surplus = np.bincount(confidence_bins(confidence, bins), weights=confidence - correct, minlength=bins)
        return float(np.abs(surplus).sum() / len(confidence))

    def worst(self, count: int) -> NDArray[np.int64]:
        """Positions of the `count` mistakes with the highest loss, highest first; fewer if there are fewer."""
        wrong = np.flatnonzero(self.counted & ~self.correct)
        loss = np.where(np.isnan(self.loss[wrong]), np.inf, self.loss[wrong])
        return wrong[np.argsort(-loss, kind="stable")[:count]]

    def _mean(self, values: NDArray[np.bool_] | NDArray[np.float64]) -> float:
        return float(values[self.counted].mean()) if self.images else float("nan")


def confidence_bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """(N,) which of `bins` equal intervals each confidence is in: m is (m / bins, (m + 1) / bins] (Guo et al. 2017)."""
    return np.digitize(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
