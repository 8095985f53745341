"""The plot of `lipsformer lipschitz`: upper and lower bounds by depth."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lipsformer.model.lipschitz.bounds import flatten
from lipsformer.system.plotting import ACCENT, FAINT, PRIMARY, SECONDARY, STYLE, save_figure

from .report import LipschitzReport, cumulative

__all__ = ["plot_bounds"]

MOST_NAMES = 40  # steps that can be labeled legibly


def plot_bounds(path: Path, report: LipschitzReport) -> None:
    """Draw both bounds, from the image to the output of each step, into the PNG file `path`."""
    names = [step.name for step in flatten(report.upper)]
    upper = [value for value in cumulative(report) if value is not None]
    lower, largest, reason = report.profile, max(report.lower.values()), report.upper.reason
    steps = range(len(names))
    bounded = steps[: len(upper)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"{Path(report.model).name}: Lipschitz constant by depth", pad=26)
        axes.fill_between(bounded, lower[: len(upper)], upper, color=PRIMARY, alpha=0.07, linewidth=0)
        above = "upper bound, for all images" + (f" (ends: not bounded at {reason})" if reason else "")
        below = f"lower bound, norm of the Jacobian at {Path(next(iter(report.lower))).name}"
        axes.plot(bounded, upper, ".-", color=PRIMARY, linewidth=1.8, label=above)
        axes.plot(steps, lower, ".-", color=ACCENT, linewidth=1.8, label=below)
        if not reason:
            gap, middle = f"{upper[-1] - largest:.1f} orders of magnitude", (upper[-1] + largest) / 2
            axes.text(steps[-1] - 0.15, middle, gap, ha="right", color=SECONDARY)
        _stages(axes, names)
        axes.set_ylabel("from the image to the step's output")
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))
        figure.legend(loc="outside lower left")
        save_figure(figure, path)


def _stages(axes: Axes, names: list[str]) -> None:
    """Label the steps below the axis and the stages above the plot, with a line between two stages."""
    short = [name.rsplit(", ", 1)[-1].removeprefix("block ") for name in names]
    axes.set_xticks(range(len(names)), short, fontsize=9 if len(names) <= MOST_NAMES else 6, rotation=90)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, len(names) - 0.4)
    for stage, members in itertools.groupby(enumerate(names), key=lambda member: member[1].split(",")[0]):
        places = [position for position, _ in members]
        if stage.startswith("stage"):
            axes.axvline(places[0] - 0.5, color=FAINT, linewidth=0.8)
            axes.axvline(places[-1] + 0.5, color=FAINT, linewidth=0.8)
            middle = (places[0] + places[-1]) / 2
            axes.text(middle, 1.01, stage, transform=axes.get_xaxis_transform(), ha="center", color=SECONDARY)
