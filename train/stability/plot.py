"""Plot of a stability grid: final accuracy against learning rate, and the loss curves of each column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from lipsformer.system.plotting import ACCENT, INK, PRIMARY, SECONDARY, STYLE, save_figure

from .report import decades

__all__ = ["plot_stability"]

COLORS = (PRIMARY, ACCENT, "#2a8f5b", "#8a4fb0", INK, "#b08a1e")


def plot_stability(path: Path, report: Mapping[str, Any]) -> None:
    """Draws final accuracy against learning rate, and the loss curves of each column, into the PNG file `path`."""
    grid, dataset, count = report["grid"], report["dataset"], len(report["summary"])
    across = -(-count // 2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9 + 4 * across, 6.2), layout="constrained")
        figure.suptitle(
            f"Training on {dataset['name']} without warm-up, {grid['recipes'][0]['epochs']} "
            f"epoch{'s' if grid['recipes'][0]['epochs'] > 1 else ''}, {len(grid['seeds'])} "
            f"seed{'s' if len(grid['seeds']) > 1 else ''}",
            fontweight="bold",
            fontsize=14,
            x=0.01,
            ha="left",
        )
        layout = figure.add_gridspec(1, 2, width_ratios=(1.15, across))
        left = figure.add_subplot(layout[0])
        _plot_accuracy(left, report)
        losses = layout[1].subgridspec(min(2, count), across).subplots(sharex=True, sharey=True, squeeze=False)
        for index, axes in enumerate(losses.flat):
            if index < count:
                _plot_losses(axes, report, index)
            else:
                axes.set_visible(False)
        for axes in losses[-1]:
            axes.set_xlabel("epochs")
        for axes in losses[:, 0]:
            axes.set_ylabel("cross entropy (nats)")
        top = losses[0, 0]
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
        figure.legend(*top.get_legend_handles_labels(), title="learning rate", loc="outside right center")
        save_figure(figure, path)


def _plot_accuracy(axes: Axes, report: Mapping[str, Any]) -> None:
    rates = report["grid"]["learning_rates"]
    for index, (name, summary) in enumerate(report["summary"].items()):
        color, runs = COLORS[index % len(COLORS)], [run for run in report["runs"] if run["column"] == name]
        ended = [run for run in runs if run["top1"] is not None]
        for learned in (True, False):
            some = [run for run in ended if (run["outcome"] == "learned") == learned]
            axes.plot(
                [run["learning_rate"] for run in some],
                [run["top1"] for run in some],
                "o",
                color=color,
                markersize=7,
                markerfacecolor=color if learned else "white",
                zorder=3,
            )
        tops = [[run["top1"] for run in ended if run["learning_rate"] == rate] for rate in rates]
        means = np.array([np.mean(top) if top else np.nan for top in tops])
        axes.plot(rates, means, color=color, linewidth=1.6)
        label, usable = name, summary["usable"]
        if usable is not None:
            label += f": usable over {decades(usable)}"
            inside = [usable["from"] <= rate <= usable["to"] for rate in rates]
            axes.plot(rates, np.where(inside, means, np.nan), color=color, linewidth=9, alpha=0.22)
        axes.plot([], [], "o-", color=color, label=label)
        for run in runs:
            if run["outcome"] == "diverged":  # next to those of the other columns
                rate = run["learning_rate"] * 10 ** (0.06 * (index - (len(report["summary"]) - 1) / 2))
                axes.plot(rate, 0, "x", color=color, markersize=10, markeredgewidth=2.5, clip_on=False, zorder=3)
    axes.axhline(report["chance"]["top1"], color=SECONDARY, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    if any(run["outcome"] == "did not learn" for run in report["runs"]):
        axes.plot([], [], "o", color=INK, markerfacecolor="white", label="did not learn")
    if any(run["outcome"] == "diverged" for run in report["runs"]):
        axes.plot([], [], "x", color=INK, markersize=8, markeredgewidth=2, label="diverged")
    axes.set(title="Final accuracy", xlabel="learning rate at the first step", ylabel="top-1", xscale="log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    best = max((run["top1"] for run in report["runs"] if run["top1"] is not None), default=1.0)
    axes.set_ylim(0, 1.08 * best)


def _plot_losses(axes: Axes, report: Mapping[str, Any], index: int) -> None:
    """Draws the loss curves of one column, darker for higher learning rates. Diverged ones end in a cross."""
    name, rates, chance = list(report["summary"])[index], report["grid"]["learning_rates"], report["chance"]["loss"]
    colors = mpl.colormaps["plasma_r"](np.linspace(0.12, 1.0, len(rates)))
    for run in report["runs"]:
        if run["column"] != name:
            continue
        color = colors[rates.index(run["learning_rate"])]
        label = f"{run['learning_rate']:g}" if run["seed"] == report["grid"]["seeds"][0] else None
        times = [time for time, _ in run["curve"]]
        losses = [np.nan if loss is None else loss for _, loss in run["curve"]]
        axes.plot(times, losses, color=color, linewidth=1.6, label=label)
        if run["outcome"] == "diverged":
            end = max([time for time, loss in run["curve"] if loss is not None], default=times[0])
            axes.plot(end, chance, "x", color=color, markersize=9, markeredgewidth=2.5)
    axes.axhline(chance, color=SECONDARY, linewidth=1, linestyle=(0, (4, 3)))
    finite = [loss for run in report["runs"] for _, loss in run["curve"] if loss is not None]
    lowest = min([chance, *finite])
    axes.set_ylim(lowest - 0.05 * (chance - lowest), chance + 0.2 * max(chance - lowest, 0.1))
    axes.set_xlim(0, report["grid"]["recipes"][0]["epochs"])
    axes.set_title(f"Training loss: {name}", color=COLORS[index % len(COLORS)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
