"""The files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipsformer.datasets import Split
from lipsformer.evaluation.predictions import Predictions
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.atomic import atomic_write

from .classes_table import class_table
from .confusion import plot_confusion
from .mistakes import plot_mistakes

__all__ = ["CLASSES", "CONFUSION", "MISTAKES", "write_report"]

CLASSES, CONFUSION, MISTAKES = "classes.md", "confusion.png", "mistakes.png"


def write_report(
    folder: Path, outcomes: Predictions, split: Split, classes: Sequence[str], preprocessing: Preprocessing, title: str
) -> None:
    """Writes classes.md, confusion.png and mistakes.png into `folder`, each whole or not at all.

    `outcomes` are those of the images of `split`, in its order; `title` says which model this is, on what.

    Raises:
        InputError: if a file cannot be written.
    """
    with atomic_write(folder / CLASSES) as draft:
        draft.write_text(class_table(outcomes, classes, title), encoding="utf-8")
    plot_confusion(folder / CONFUSION, outcomes, classes, title)
    plot_mistakes(folder / MISTAKES, outcomes, split, classes, preprocessing, title)
