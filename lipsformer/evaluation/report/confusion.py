"""The plot of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from lipsformer.evaluation.predictions import ConfusionPairs, Predictions
from lipsformer.system.plotting import INK, save_figure

from .text import NAMES_STYLE, any_script, fit, inches

__all__ = ["plot_confusion"]

MOST_NAMES, MOST_NUMBERS = 60, 30  # with more classes, names or counts would be illegible
MOST_ROWS, MERGED_ROWS = 1000, 250  # a pixel is a class; with more classes, neighbors share one of the larger cells
CELL, SMALL_CELL, SMALLEST, LARGE = 0.55, 0.2, 3.0, 6.5  # inches: of a class's row, and of the whole matrix
NAME, LIST_NAME = 2.0, 1.6  # inches that a name may take, along a side and in the list of pairs
LIST = 4.4  # inches
MOST_PAIRS = 25
TITLE = FontProperties(size=12, weight="bold")


def plot_confusion(path: Path, predictions: Predictions, classes: Sequence[str], title: str) -> None:
    """Plot the confusion matrix into the PNG file `path`; with very many classes, only the worst pairs are named."""
    pairs = predictions.confusion()
    lines = (title, f"top-1 {predictions.top1:.1%} on {predictions.images:,} images")
    named = len(classes) <= MOST_NAMES
    font = FontProperties(size=10 if len(classes) <= MOST_NUMBERS else 7)
    names = [fit(name, font, NAME) for name in classes] if named else []
    with mpl.rc_context({**NAMES_STYLE, "axes.grid": False}), any_script():
        width, height = _size(len(classes), max((inches(name, font) for name in names), default=0.3))
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(
            "\n".join(fit(line, TITLE, width - 0.3) for line in lines), x=0.15 / width, ha="left", fontproperties=TITLE
        )
        grid = figure.add_gridspec(1, 1) if named else figure.add_gridspec(1, 2, width_ratios=(LARGE + 1, LIST))
        matrix = figure.add_subplot(grid[0])
        shares, merged = _shares(pairs, len(classes))
        end = len(shares) * merged - 0.5
        image = matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=(-0.5, end, end, -0.5))
        matrix.set(xlabel="predicted", ylabel="true")
        if named:
            size = font.get_size_in_points()
            matrix.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
            matrix.set_yticks(range(len(names)), names, fontsize=size)
        else:
            cell = f"; {merged} in each cell" if merged > 1 else ""
            matrix.set(xlabel=f"predicted (number of the class{cell})", ylabel=f"true (number of the class{cell})")
            _list_pairs(figure.add_subplot(grid[1]), pairs.mistakes(), classes)
        if len(classes) <= MOST_NUMBERS:
            _number(matrix, pairs, shares)
        matrix.tick_params(length=0)
        bar = figure.colorbar(image, ax=matrix, shrink=0.6, format=PercentFormatter(xmax=1, decimals=0))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        save_figure(figure, path)


def _shares(pairs: ConfusionPairs, classes: int) -> tuple[NDArray[np.float64], int]:
    """The confusion matrix as shares of the true classes, and how many neighboring classes share a row or column."""
    merged = 1 if classes <= MOST_ROWS else -(-classes // MERGED_ROWS)
    side = -(-classes // merged)
    cells = pairs.true // merged * side + pairs.predicted // merged
    counts = np.bincount(cells, weights=pairs.images, minlength=side**2).reshape(side, side)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), merged


def _size(classes: int, names: float) -> tuple[float, float]:
    """Width and height in inches of a figure whose longest name takes `names` inches."""
    if classes > MOST_NAMES:
        return LARGE + 1.4 + LIST, LARGE + 0.5
    side = max(SMALLEST, (CELL if classes <= MOST_NUMBERS else SMALL_CELL) * classes)
    return side + names + 1.8, side + 0.72 * names + 1.2  # names below the matrix are set at 45 degrees


def _number(axes: Axes, pairs: ConfusionPairs, shares: NDArray[np.float64]) -> None:
    for row, column, images in zip(*pairs, strict=True):
        color = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, str(images), ha="center", va="center", color=color, fontsize=9)


def _list_pairs(axes: Axes, mistakes: ConfusionPairs, classes: Sequence[str]) -> None:
    """List the most frequent mistakes, in place of names along the sides."""
    font = FontProperties(size=9)
    axes.set_axis_off()
    axes.set_title("Most frequent mistakes", fontsize=11)
    line = 1 / (MOST_PAIRS + 1)
    for place, (true, predicted, images) in enumerate(zip(*mistakes, strict=True)):
        if place == MOST_PAIRS:
            break
        for left, text in (
            (0.0, f"{images:,}"),
            (0.5 / LIST, fit(classes[true], font, LIST_NAME)),
            (2.4 / LIST, f"→ {fit(classes[predicted], font, LIST_NAME)}"),
        ):
            axes.text(left, 1 - (place + 0.8) * line, text, transform=axes.transAxes, fontproperties=font)
