"""The files of an evaluation report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipsformer.datasets import Split
from lipsformer.evaluation.predictions import Predictions
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.heat_map import Explainer
from lipsformer.system.atomic import atomic_write

from .classes_table import class_table
from .confusion import plot_confusion
from .mistakes import plot_mistakes

__all__ = ["CLASSES", "CONFUSION", "MISTAKES", "write_report"]

CLASSES, CONFUSION, MISTAKES = "classes.md", "confusion.png", "mistakes.png"


def write_report(
    folder: Path,
    predictions: Predictions,
    split: Split,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    title: str,
    explainer: Explainer | None = None,
) -> None:
    """Write classes.md, confusion.png and mistakes.png into `folder`, each whole or not at all.

    `predictions` belong to the images of `split`, in order. `title` names the model and the data. With
    an `explainer`, the mistakes have heat maps.

    Raises:
        InputError: if a file cannot be written.
    """
    with atomic_write(folder / CLASSES) as draft:
        draft.write_text(class_table(predictions, classes, title), encoding="utf-8")
    plot_confusion(folder / CONFUSION, predictions, classes, title)
    plot_mistakes(folder / MISTAKES, predictions, split, classes, preprocessing, title, explainer)
