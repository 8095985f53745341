"""A model with a rule by which its answers are accepted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lipsformer import load_checkpoint, load_predictor, save_checkpoint
from lipsformer.bundle.acceptance import AcceptanceRule, AcceptanceThresholds, FeatureSpace
from lipsformer.images.samples import SAMPLES
from tests.support.trained import Trained

__all__ = ["ACCEPTED", "LOW_SCORE", "UNFAMILIAR", "choosy", "with_acceptance"]

# Photos and what `choosy` makes of them.
ACCEPTED = SAMPLES / "Kaiser.jpg"
LOW_SCORE = SAMPLES / "Watermelon.jpg"
UNFAMILIAR = SAMPLES / "Pink-Lady.jpg"


def with_acceptance(
    trained: Trained,
    folder: Path,
    *,
    familiar: Sequence[Path],
    min_score: float,
    max_distance: float,
    temperature: float = 1.0,
) -> Trained:
    """Writes the model and its bundle into `folder`, with a rule; each of the `familiar` photos is the mean of a class.

    The distance is Euclidean, divided by the root of the number of features.
    """
    from lipsformer.export import export_bundle

    checkpoint, predictor = load_checkpoint(trained.checkpoint), load_predictor(trained.checkpoint)
    means = predictor.runtime.infer(np.stack([predictor.prepare(photo) for photo in familiar])).features
    assert means is not None
    thresholds = AcceptanceThresholds(
        min_score=min_score, max_distance=max_distance, max_error=0.05, confidence=0.9, coverage=0.5, photos=100
    )
    space = FeatureSpace(means=means, whitening=np.eye(means.shape[1], dtype=np.float32))
    changed = dataclasses.replace(trained, checkpoint=folder / "model.safetensors", bundle=folder / "bundle")
    save_checkpoint(
        changed.checkpoint,
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        metrics=checkpoint.metrics,
        temperature=temperature,
        acceptance=AcceptanceRule(thresholds=thresholds, space=space),
    )
    export_bundle(changed.checkpoint, changed.bundle)
    return changed


@pytest.fixture(scope="session")
def choosy(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small model with a temperature and a rule, which only some of the sample photos pass."""
    folder = tmp_path_factory.mktemp("choosy")
    familiar = (ACCEPTED, LOW_SCORE, SAMPLES / "Orange.jpg")
    return with_acceptance(trained, folder, familiar=familiar, min_score=0.7, max_distance=1.0, temperature=1.5)
