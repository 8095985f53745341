"""The picture of a training: its learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lipsformer.evaluation.report.text import NAMES_STYLE, any_script, fit, inches
from lipsformer.system.plotting import ACCENT, PRIMARY, SECONDARY, save_figure

__all__ = ["plot_curves"]

Record = Mapping[str, Any]

TRAINING, VALIDATION, RATE, SKIPPED = SECONDARY, PRIMARY, ACCENT, SECONDARY
TITLE = FontProperties(size=13, weight="bold")
WIDTH = 11  # inches
FEW_EPOCHS = 10  # up to here each epoch is marked: a single one draws no line


def plot_curves(path: Path, history: Sequence[Record], title: str) -> None:
    """Draws loss, accuracy and learning rate over the epochs of `history` into the PNG file `path`.

    A record is a line of metrics.jsonl; a loss or a training accuracy that is None leaves a gap.
    """
    best, last = max(history, key=lambda record: record["val_top1"]), history[-1]
    result = (
        f": top-1 {last['val_top1']:.1%} after epoch {last['epoch']}, best {best['val_top1']:.1%} "
        f"after epoch {best['epoch']}"
    )
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        name = fit(title, TITLE, WIDTH - 0.3 - inches(result, TITLE))
        figure.suptitle(name + result, fontproperties=TITLE)
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
        _rates(rate, history)
        for axes in (loss, accuracy, rate):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlim(0.5, last["epoch"] + 0.5)
        save_figure(figure, path)


def _rates(axes: Axes, history: Sequence[Record]) -> None:
    """The learning rate, and on an axis of its own how many steps were skipped, where some were."""
    axes.plot(_epochs(history), [record["learning_rate"] for record in history], color=RATE, marker=_marker(history))
    axes.set(title="Learning rate", xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    skipped = [record.get("skipped_steps", 0) for record in history]
    if any(skipped):
        count = axes.twinx()
        count.bar(_epochs(history), skipped, color=SKIPPED, width=0.5, alpha=0.6)
        count.grid(visible=False)
        count.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_title("Learning rate, and steps skipped (bars, right)")
        axes.set_zorder(count.get_zorder() + 1)
        axes.patch.set_visible(False)


def _lines(axes: Axes, history: Sequence[Record], train: str, validation: str) -> None:
    for name, color, label in (
        (train, TRAINING, "training (augmented)"),
        (validation, VALIDATION, "validation (averaged weights)"),
    ):
        values = [np.nan if record[name] is None else record[name] for record in history]
        axes.plot(_epochs(history), values, color=color, label=label, linewidth=1.8, marker=_marker(history))
    axes.set_xlabel("epoch")
    axes.legend()


def _marker(history: Sequence[Record]) -> str:
    return "." if len(history) <= FEW_EPOCHS else ""


def _epochs(history: Sequence[Record]) -> list[int]:
    return [record["epoch"] for record in history]
