"""The limits of the parity gate for each precision, and how the command line changes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from lipsformer.bundle.manifest import PRECISIONS
from lipsformer.system.errors import InputError, suggest

from .metrics import ParityMetrics

__all__ = ["AT_LEAST", "METRICS", "THRESHOLDS", "Limits", "failure", "read_thresholds"]

Limits = Mapping[str, float]  # by the name of the metric: see `ParityMetrics` and `BatchInvariance`

ALIKE = tuple(field.name for field in dataclasses.fields(ParityMetrics))
# All metrics with a possible limit: on photos, on hard inputs, accuracy on labeled photos, batch invariance.
METRICS = (*ALIKE, *(f"hard_{name}" for name in ALIKE), "accuracy_loss", "neighbours", "order")
# Metrics that must reach their limit; all others must not exceed it.
AT_LEAST = ("cosine", "top1_agreement", "top5_agreement")

THRESHOLDS: Mapping[str, Limits] = {
    "fp32": {
        "relative_l2": 1e-5,
        "features_relative_l2": 1e-5,
        "top1_agreement": 1.0,
        "hard_relative_l2": 1e-4,
        "neighbours": 1e-6,
        "order": 1e-5,
    },
    "fp16": {
        "relative_l2": 5e-3,
        "features_relative_l2": 5e-3,
        "top1_agreement": 0.995,
        "accuracy_loss": 0.5,
        "hard_relative_l2": 2e-2,
        "neighbours": 1e-6,
        "order": 5e-3,
    },
    "bf16": {
        "relative_l2": 5e-2,
        "relative_l2_mean": 2e-2,
        "features_relative_l2": 5e-2,
        "top1_agreement": 0.98,
        "accuracy_loss": 0.5,
        "hard_relative_l2": 5e-2,
        "neighbours": 1e-6,
        "order": 1e-2,
    },
    "int8": {
        "relative_l2": 1.5,
        "relative_l2_mean": 0.1,
        "features_relative_l2": 1.5,
        "top1_agreement": 0.97,
        "accuracy_loss": 1.0,
        "hard_relative_l2": 1.5,
        "neighbours": 1e-6,
        "order": 5e-2,
    },
}


def failure(metrics: Mapping[str, float | None], limits: Limits) -> str | None:
    """The first of `metrics` beyond its limit, in words; None if there is none. A metric of None was not measured."""
    for name, limit in limits.items():
        value = metrics.get(name)
        if value is None:
            continue
        if name.removeprefix("hard_") in AT_LEAST:
            if not value >= limit:  # catches NaN too
                return f"{name} {value:.4g} is below {limit:g}"
        elif not value <= limit:
            return f"{name} {value:.3g} exceeds {limit:g}"
    return None


def read_thresholds(settings: Iterable[str] = ()) -> dict[str, dict[str, float]]:
    """The limits, changed by settings such as "fp16.relative_l2=1e-2".

    Raises:
        InputError: if a setting cannot be read, or has an unknown name; a similar one is suggested.
    """
    changed = {precision: dict(limits) for precision, limits in THRESHOLDS.items()}
    known = [f"{precision}.{metric}" for precision in PRECISIONS for metric in METRICS]
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--threshold {setting}: write PRECISION.METRIC=NUMBER, such as fp16.relative_l2=1e-2")
        if name not in known:
            raise InputError(f"--threshold {setting}: unknown '{name}', {suggest(name, known)}")
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise InputError(f"--threshold {setting}: '{text}' is not a finite number")
        precision, _, metric = name.partition(".")
        changed[precision][metric] = limit
    return changed
