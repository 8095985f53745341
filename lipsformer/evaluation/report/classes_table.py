"""The Markdown table of per-class metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipsformer.evaluation.predictions import ClassPredictions, Predictions
from lipsformer.system.markdown import escape, markdown_table

__all__ = ["class_table", "headline", "worst_first"]

HEADINGS = ("class", "images", "accuracy", "precision", "F1", "most often taken for")


def class_table(predictions: Predictions, classes: Sequence[str], title: str) -> str:
    """The report classes.md: overall metrics, then a row for each class, the least accurate first."""
    names = [escape(name) for name in classes]
    table = markdown_table(HEADINGS, [_row(row, names) for row in worst_first(predictions)], "lrrrr")
    return "\n".join((f"# {escape(title)}", "", f"{headline(predictions)}.", "", table, ""))


def headline(predictions: Predictions) -> str:
    """The overall metrics in one line."""
    metrics = f"top-1 {predictions.top1:.2%}, top-5 {predictions.top5:.2%} on {predictions.images:,} images"
    metrics += f", loss {predictions.mean_loss:.3f}, calibration error {predictions.calibration_error():.1%}"
    unreadable = len(predictions.unreadable)
    return f"{metrics}; {unreadable:,} could not be read" if unreadable else metrics


def worst_first(predictions: Predictions) -> list[ClassPredictions]:
    """The classes by rising accuracy; ties by falling number of images; classes without images last."""
    return sorted(
        predictions.per_class(), key=lambda row: (math.inf if row.accuracy is None else row.accuracy, -row.images)
    )


def _row(row: ClassPredictions, classes: Sequence[str]) -> tuple[str, ...]:
    shares = ("" if share is None else f"{share:.1%}" for share in (row.accuracy, row.precision, row.f1))
    confusion = "" if row.confused_with is None else f"{classes[row.confused_with]} ({row.confused:,})"
    return classes[row.index], f"{row.images:,}", *shares, confusion
