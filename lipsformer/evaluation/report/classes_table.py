"""How each class did, as a Markdown table that reads well as plain text too."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rich.cells import cell_len

from lipsformer.evaluation.predictions import ClassPredictions, Predictions
from lipsformer.system.console import printable

__all__ = ["class_table", "headline", "worst_first"]

HEADINGS = ("class", "images", "accuracy", "precision", "F1", "most often taken for")
NUMBERS = range(1, 5)  # the columns that are set flush right


def class_table(outcomes: Predictions, classes: Sequence[str], title: str) -> str:
    """The report classes.md: the figures of all images, then a row for each class, the least accurate first."""
    rows = [_row(row, [_escape(name) for name in classes]) for row in worst_first(outcomes)]
    widths = [max(map(cell_len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    rule = ["-" * (width - 1) + ":" if column in NUMBERS else "-" * width for column, width in enumerate(widths)]
    body = [_line(cells, widths) for cells in (HEADINGS, rule, *rows)]
    return "\n".join((f"# {_escape(title)}", "", f"{headline(outcomes)}.", "", *body, ""))


def headline(outcomes: Predictions) -> str:
    """The figures of all images in a line."""
    figures = f"top-1 {outcomes.top1:.2%}, top-5 {outcomes.top5:.2%} on {outcomes.images:,} images"
    figures += f", loss {outcomes.mean_loss:.3f}, calibration error {outcomes.calibration_error():.1%}"
    unreadable = len(outcomes.unreadable)
    return f"{figures}; {unreadable:,} could not be read" if unreadable else figures


def worst_first(outcomes: Predictions) -> list[ClassPredictions]:
    """The classes by rising accuracy, of equal ones the one with more images first; those without images at the end."""
    return sorted(
        outcomes.per_class(), key=lambda row: (math.inf if row.accuracy is None else row.accuracy, -row.images)
    )


def _row(row: ClassPredictions, classes: Sequence[str]) -> tuple[str, ...]:
    shares = ("" if share is None else f"{share:.1%}" for share in (row.accuracy, row.precision, row.f1))
    confusion = "" if row.confused_with is None else f"{classes[row.confused_with]} ({row.confused:,})"
    return classes[row.index], f"{row.images:,}", *shares, confusion


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        blank + cell if column in NUMBERS else cell + blank
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        for blank in (" " * (width - cell_len(cell)),)
    ]
    return f"| {' | '.join(padded)} |"


def _escape(name: str) -> str:
    """A name that Markdown shows as it is, in a cell."""
    return re.sub(r"([\\`*|<\[\]]|\b_|_\b)", r"\\\1", printable(name))
