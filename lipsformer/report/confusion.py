"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from lipsformer.outcomes import Outcomes
from lipsformer.plotting import INK, save_figure

from .text import NAMES_STYLE, any_script, elide

__all__ = ["draw_confusion", "plot_confusion"]

MOST_NAMES, MOST_NUMBERS = 60, 30  # classes beyond which names, or counts in the cells, could not be read
MOST_CHARACTERS = 28  # of a name
MOST_PAIRS = 24  # listed where names do not fit along the sides


def plot_confusion(path: Path, outcomes: Outcomes, classes: Sequence[str], title: str) -> None:
    """Draws who was taken for whom into the PNG file `path`."""
    title = f"{elide(title, 80)}\ntop-1 {outcomes.top1:.1%} on {outcomes.images:,} images"
    draw_confusion(path, outcomes.confusion(), classes, title)


def draw_confusion(path: Path, counts: NDArray[np.int64], classes: Sequence[str], title: str) -> None:
    """Draws the confusion matrix `counts` (K, K), rows true and columns predicted, into the PNG file `path`."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 2.5 + 0.48 * min(len(classes), MOST_NUMBERS)) if len(classes) <= MOST_NAMES else 8.0
    with mpl.rc_context({**NAMES_STYLE, "axes.grid": False}), any_script():
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set(xlabel="predicted", ylabel="true")
        if len(classes) <= MOST_NAMES:
            _name(axes, classes)
        if len(classes) <= MOST_NUMBERS:
            _number(axes, counts, shares)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, format=PercentFormatter(xmax=1, decimals=0))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        save_figure(figure, path)


def _name(axes: Axes, classes: Sequence[str]) -> None:
    size = 10 if len(classes) <= MOST_NUMBERS else 7
    names = [elide(name, MOST_CHARACTERS) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)


def _number(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
