"""curves.png: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lipsformer.evaluation.report.text import NAMES_STYLE, any_script, fit, inches
from lipsformer.system.plotting import ACCENT, PRIMARY, SECONDARY, save_figure
from lipsformer.train.metrics import EpochMetrics
from lipsformer.train.run_folder import CURVES

from .listener import Listener, RunInfo

__all__ = ["Curves", "plot_curves"]

Values = Sequence[float | None]

TRAINING, VALIDATION, RATE, SKIPPED, DISTILLATION = SECONDARY, PRIMARY, ACCENT, SECONDARY, ACCENT
TITLE = FontProperties(size=13, weight="bold")
WIDTH = 11  # inches
FEW_EPOCHS = 10  # up to here each epoch has a marker: a single one draws no line


class Curves(Listener):
    """Draws the curves when the training ends."""

    def on_begin(self, run: RunInfo) -> None:
        """Remembers the epochs that are done."""
        self._run = run
        self._epochs = list(run.history)

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Remembers the epoch."""
        self._epochs.append(epoch)

    def on_end(self) -> None:
        """Draws the curves, if there is an epoch to show."""
        if self._epochs:
            with self._run.folder.writing():
                plot_curves(self._run.folder.path / CURVES, self._epochs, self._run.title)


def plot_curves(path: Path, history: Sequence[EpochMetrics], title: str) -> None:
    """Draws loss, accuracy and learning rate over the epochs of `history` into the PNG file `path`.

    A loss or a training accuracy that is None leaves a gap.
    """
    best, last = max(history, key=lambda epoch: epoch.val_top1), history[-1]
    result = f": top-1 {last.val_top1:.1%} after epoch {last.epoch}, best {best.val_top1:.1%} after epoch {best.epoch}"
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        name = fit(title, TITLE, WIDTH - 0.3 - inches(result, TITLE))
        figure.suptitle(name + result, fontproperties=TITLE)
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        loss, accuracy = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        rate = figure.add_subplot(grid[1, :])
        _plot(loss, history, [epoch.train_loss for epoch in history], [epoch.val_loss for epoch in history])
        loss.set(title="Loss", ylabel="cross entropy (nats)")
        _distillation(loss, history)
        _plot(accuracy, history, [epoch.train_top1 for epoch in history], [epoch.val_top1 for epoch in history])
        accuracy.set(title="Accuracy", ylabel="top-1")
        accuracy.set_ylim(0, 1.02)  # a point at 100% is drawn whole
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        accuracy.plot(best.epoch, best.val_top1, "o", color=VALIDATION, markersize=7, markerfacecolor="white")
        _rates(rate, history)
        for axes in (loss, accuracy, rate):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlim(0.5, last.epoch + 0.5)
        save_figure(figure, path)


def _rates(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    """The learning rate and, if steps were skipped, their number on a second axis."""
    axes.plot(_epochs(history), [epoch.learning_rate for epoch in history], color=RATE, marker=_marker(history))
    axes.set(title="Learning rate", xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    skipped = [epoch.skipped_steps for epoch in history]
    if any(skipped):
        count = axes.twinx()
        count.bar(_epochs(history), skipped, color=SKIPPED, width=0.5, alpha=0.6)
        count.grid(visible=False)
        count.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_title("Learning rate, and steps skipped (bars, right)")
        axes.set_zorder(count.get_zorder() + 1)
        axes.patch.set_visible(False)


def _plot(axes: Axes, history: Sequence[EpochMetrics], train: Values, validation: Values) -> None:
    for values, color, label in (
        (train, TRAINING, "training (augmented)"),
        (validation, VALIDATION, "validation (averaged weights)"),
    ):
        shown = [np.nan if value is None else value for value in values]
        axes.plot(_epochs(history), shown, color=color, label=label, linewidth=1.8, marker=_marker(history))
    axes.set_xlabel("epoch")
    axes.legend()


def _distillation(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    """The distillation loss, if there was a teacher; then the training loss is more than a cross entropy."""
    values = [np.nan if (loss := epoch.train_distillation_loss) is None else loss for epoch in history]
    if not np.isnan(values).all():
        axes.plot(
            _epochs(history), values, color=DISTILLATION, label="distillation (training)", marker=_marker(history)
        )
        axes.set_ylabel("loss")
        axes.legend()


def _marker(history: Sequence[EpochMetrics]) -> str:
    return "." if len(history) <= FEW_EPOCHS else ""


def _epochs(history: Sequence[EpochMetrics]) -> list[int]:
    return [epoch.epoch for epoch in history]
