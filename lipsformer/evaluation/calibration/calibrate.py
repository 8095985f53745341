"""`lipsformer calibrate`: a temperature, and by request a rule for accepting answers, added to a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.bundle.acceptance import AcceptanceRule, AcceptanceThresholds, FeatureSpace
from lipsformer.bundle.reference import ReferenceHistograms
from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.checkpoints.save import save_checkpoint
from lipsformer.datasets import Split, UnlabeledImages
from lipsformer.datasets.spread import spread
from lipsformer.evaluation.evaluate import run
from lipsformer.evaluation.predictions import Predictions
from lipsformer.inference.predictor import Predictor, softmax
from lipsformer.inference.runtimes import Features, Logits, TorchRuntime
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError
from lipsformer.system.strict_json import finite

from .acceptance import choose_thresholds
from .feature_space import fit_feature_space
from .risk_coverage import auroc
from .temperature import fit_temperature

__all__ = ["AcceptanceGoal", "Calibration", "calibrate"]

MOST_TRAINING_PHOTOS = 50_000  # more would not move the means and the covariance


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceptanceGoal:
    """What the accepted answers shall be: at most the share `max_error` wrong, with the probability `confidence`.

    `train` are the training photos, which say where the classes are in feature space. `outliers` are photos that show
    none of the classes, if there are any.
    """

    max_error: float
    confidence: float
    train: Split
    outliers: UnlabeledImages | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """Mean cross entropy in nats, and expected calibration error."""

    loss: float
    calibration_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """How many outliers the rule accepts, and how well distance and score separate them from photos of the classes."""

    images: int
    accepted: int
    auroc_of_distance: float
    auroc_of_score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was added to a checkpoint, and how well it does.

    `before` and `after` are of the `images` in `split`. `after` is at temperatures that were fitted to one half of them
    and measured on the other.
    """

    images: int
    split: str
    temperature: float
    before: Quality
    after: Quality
    thresholds: AcceptanceThresholds | None
    outliers: Outliers | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return finite(dataclasses.asdict(self))

    def to_text(self) -> str:
        """Lines for the terminal."""
        before, after, rule, outliers = self.before, self.after, self.thresholds, self.outliers
        lines = [
            f"temperature {self.temperature:g}, fitted to {self.images:,} photos ({self.split})",
            f"calibration error {before.calibration_error:.1%} before, {after.calibration_error:.1%} after; "
            f"loss {before.loss:.3f} before, {after.loss:.3f} after (on halves that the fit did not see)",
        ]
        if rule is not None:
            lines.append(
                f"accepted: score at least {rule.min_score:.3f} and distance at most {rule.max_distance:.3f}; "
                f"{rule.coverage:.1%} of these photos are, of which at most {rule.max_error:.1%} are wrong "
                f"(confidence {rule.confidence:.0%})"
            )
        if outliers is not None:
            lines.append(
                f"outliers: {outliers.accepted:,} of {outliers.images:,} are accepted; "
                f"AUROC {outliers.auroc_of_distance:.3f} by distance, {outliers.auroc_of_score:.3f} by score"
            )
        return "\n".join(lines)


def calibrate(
    model: str | Path, output: Path, split: Split, goal: AcceptanceGoal | None = None, *, device: str = "auto"
) -> Calibration:
    """Writes the checkpoint `model` to `output` with a temperature, and with a rule for accepting answers for a `goal`.

    Without a goal, a rule that the checkpoint had is dropped: it belongs to the scores at the old temperature. In any
    case the checkpoint gets histograms of its answers to the photos, with which a server compares those that it gives.

    Args:
        model: a .safetensors checkpoint, or the name of a trained model.
        output: the checkpoint to write.
        split: labeled photos that the model was not trained on.
        goal: for the rule.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if the checkpoint or the photos cannot be used, or no threshold reaches the goal.
    """
    path = resolve_model(model)
    if path.suffix != ".safetensors":
        raise InputError(f"{model}: calibrate takes a checkpoint (.safetensors); then export the result again")
    checkpoint = load_checkpoint(path)
    predictor = _uncalibrated(checkpoint, path, device)
    logits, features, readable = _outputs(predictor, split)
    labels = split.labels[readable]
    temperature = fit_temperature(logits, labels)
    scores = _scores(logits, temperature)
    acceptance, outliers, distances = None, None, None
    if goal is not None:
        space = _feature_space(predictor, goal.train)
        distances = space.distances(features)
        if goal.outliers is not None:
            outlier_logits, outlier_features, _ = _outputs(predictor, goal.outliers)
            outlier_scores, outlier_distances = _scores(outlier_logits, temperature), space.distances(outlier_features)
        thresholds = choose_thresholds(
            scores,
            logits.argmax(axis=1) == labels,
            distances,
            max_error=goal.max_error,
            confidence=goal.confidence,
            outlier_distances=outlier_distances if goal.outliers is not None else None,
        )
        acceptance = AcceptanceRule(thresholds=thresholds, space=space)
        if goal.outliers is not None:
            outliers = Outliers(
                images=len(outlier_scores),
                accepted=sum(
                    acceptance.refusal(score, distance) is None
                    for score, distance in zip(outlier_scores, outlier_distances, strict=True)
                ),
                auroc_of_distance=auroc(distances, outlier_distances),
                auroc_of_score=auroc(-scores, -outlier_scores),
            )
    save_checkpoint(
        output,
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        metrics=checkpoint.metrics,
        temperature=temperature,
        acceptance=acceptance,
        reference=ReferenceHistograms.of(logits.argmax(axis=1), scores, distances, len(checkpoint.classes)),
    )
    return Calibration(
        images=len(labels),
        split=split.name,
        temperature=temperature,
        before=_quality(logits, labels),
        after=_cross_fitted(logits, labels),
        thresholds=None if acceptance is None else acceptance.thresholds,
        outliers=outliers,
    )


def _uncalibrated(checkpoint: Checkpoint, path: Path, device: str) -> Predictor:
    plain = dataclasses.replace(checkpoint, temperature=1.0, thresholds=None, space=None)
    return Predictor(
        runtime=TorchRuntime(plain, device),
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        file=path,
        precision="fp32",
    )


def _outputs(predictor: Predictor, images: Split | UnlabeledImages) -> tuple[Logits, Features, NDArray[np.bool_]]:
    """Logits (M, K) and features (M, C) of the images that can be read, and (N,) which those are."""
    parts, unread = [], 0
    with track(images.name, len(images)) as advance:
        for batch in run(predictor, images):
            parts.append(batch)
            unread += len(batch.problems)
            advance(len(batch.readable), "")
    if unread:
        say(f"{images.name}: {unread:,} of {len(images):,} images cannot be read and do not count", always=True)
    readable = np.concatenate([batch.readable for batch in parts])
    logits = np.concatenate([batch.outputs.logits[batch.readable] for batch in parts])
    features = np.concatenate(
        [batch.outputs.features[batch.readable] for batch in parts if batch.outputs.features is not None]
    )
    return logits, features, readable


def _feature_space(predictor: Predictor, train: Split) -> FeatureSpace:
    if len(train) > MOST_TRAINING_PHOTOS:
        train = train.select(spread(MOST_TRAINING_PHOTOS, len(train)))
    _, features, readable = _outputs(predictor, train)
    return fit_feature_space(features, train.labels[readable], len(predictor.classes))


def _scores(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """Probabilities (N,) of the best classes."""
    best: NDArray[np.float64] = softmax(logits / np.float32(temperature)).max(axis=1)
    return best


def _quality(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Quality:
    found = Predictions.of(logits, labels)
    return Quality(loss=found.mean_loss, calibration_error=found.calibration_error())


def _cross_fitted(logits: Logits, labels: NDArray[np.int64]) -> Quality:
    """The quality after calibration, each half of the images at the temperature that fits the other half."""
    odd = np.arange(len(labels)) % 2 == 1
    halves = [
        Predictions.of(logits[own].astype(np.float64) / fit_temperature(logits[~own], labels[~own]), labels[own])
        for own in (odd, ~odd)
        if own.any() and not own.all()
    ]
    found = Predictions.join(halves) if halves else Predictions.of(logits, labels)
    return Quality(loss=found.mean_loss, calibration_error=found.calibration_error())
