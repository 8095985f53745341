"""curves.png of a probe: loss and accuracy by penalty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import NullFormatter, PercentFormatter

from lipsformer.evaluation.report.text import NAMES_STYLE, any_script, fit, inches
from lipsformer.system.plotting import ACCENT, PRIMARY, SECONDARY, save_figure

from .penalty import PathPoint, best_point

__all__ = ["plot_path"]

TITLE = FontProperties(size=13, weight="bold")
WIDTH = 11  # inches


def plot_path(path: Path, points: Sequence[PathPoint], title: str, held_out: str) -> None:
    """Draws the loss and accuracy of `points` into the PNG file `path`. `held_out` names the samples held out."""
    best = best_point(points)
    result = f": penalty {best.penalty:g} chosen, top-1 {best.held_out_top1:.1%} on {held_out}"
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        figure.suptitle(fit(title, TITLE, WIDTH - 0.3 - inches(result, TITLE)) + result, fontproperties=TITLE)
        loss, accuracy = figure.subplots(1, 2)
        penalties = [point.penalty for point in points]
        _plot(loss, penalties, [point.train_loss for point in points], [point.held_out_loss for point in points])
        loss.set(title="Loss", ylabel="cross entropy (nats)")
        _plot(accuracy, penalties, [point.train_top1 for point in points], [point.held_out_top1 for point in points])
        accuracy.set(title="Accuracy", ylabel="top-1", ylim=(0, 1.02))
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        for axes in (loss, accuracy):
            axes.axvline(best.penalty, color=ACCENT, linewidth=1.2, label="chosen")
            axes.legend()
        save_figure(figure, path)


def _plot(axes: Axes, penalties: Sequence[float], fitted: Sequence[float], held_out: Sequence[float]) -> None:
    axes.plot(penalties, fitted, ".-", color=SECONDARY, label="fitted", linewidth=1.8)
    axes.plot(penalties, held_out, ".-", color=PRIMARY, label="held out", linewidth=1.8)
    axes.set(xscale="log", xlabel="L2 penalty")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's are formulas, which names must not be
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_xaxis()  # the path goes from strong to weak
