"""Pictures of a training: learning curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from lipsformer.plotting import ACCENT, PRIMARY, SECONDARY, STYLE, save_figure
from lipsformer.report.confusion import draw_confusion

__all__ = ["plot_confusion", "plot_curves"]

Record = Mapping[str, Any]

TRAINING, VALIDATION, RATE = SECONDARY, PRIMARY, ACCENT
FEW_EPOCHS = 10  # up to here each epoch is marked: a single one draws no line


def plot_curves(path: Path, history: Sequence[Record], title: str) -> None:
    """Draws loss, accuracy and learning rate over the epochs of `history` into the PNG file `path`."""
    best, last = max(history, key=lambda record: record["val_top1"]), history[-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        figure.suptitle(
            f"{title}: top-1 {last['val_top1']:.1%} after epoch {last['epoch']}, best {best['val_top1']:.1%} "
            f"after epoch {best['epoch']}",
            fontweight="bold",
            fontsize=13,
        )
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        loss, accuracy = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        rate = figure.add_subplot(grid[1, :])
        _lines(loss, history, "train_loss", "val_loss")
        loss.set(title="Loss", ylabel="cross entropy (nats)")
        _lines(accuracy, history, "train_top1", "val_top1")
        accuracy.set(title="Accuracy", ylabel="top-1")
        accuracy.set_ylim(0, 1)
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        accuracy.plot(best["epoch"], best["val_top1"], "o", color=VALIDATION, markersize=7, markerfacecolor="white")
        rates = [record["learning_rate"] for record in history]
        rate.plot(_epochs(history), rates, color=RATE, marker=_marker(history))
        rate.set(title="Learning rate", xlabel="epoch")
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        rate.yaxis.set_major_locator(MaxNLocator(3))
        for axes in (loss, accuracy, rate):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlim(0.5, last["epoch"] + 0.5)
        save_figure(figure, path)


def plot_confusion(path: Path, counts: Tensor, classes: Sequence[str], title: str, record: Record) -> None:
    """Draws the confusion matrix `counts` (K, K), rows true and columns predicted, into the PNG file `path`."""
    matrix = counts.numpy()
    title = f"{title}\ntop-1 {record['val_top1']:.1%} on {matrix.sum():,} images, epoch {record['epoch']}"
    draw_confusion(path, matrix, classes, title)


def _lines(axes: Axes, history: Sequence[Record], train: str, validation: str) -> None:
    for name, colour, label in (
        (train, TRAINING, "training (random crops, smoothed labels)"),
        (validation, VALIDATION, "validation (averaged weights)"),
    ):
        values = [np.nan if record[name] is None else record[name] for record in history]
        axes.plot(_epochs(history), values, color=colour, label=label, linewidth=1.8, marker=_marker(history))
    axes.set_xlabel("epoch")
    axes.legend()


def _marker(history: Sequence[Record]) -> str:
    return "." if len(history) <= FEW_EPOCHS else ""


def _epochs(history: Sequence[Record]) -> list[int]:
    return [record["epoch"] for record in history]
