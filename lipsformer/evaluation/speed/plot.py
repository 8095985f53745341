"""The plot of `lipsformer benchmark`: milliseconds per call, one panel per batch size."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch

from lipsformer.evaluation.report.text import NAMES_STYLE, any_script, fit
from lipsformer.system.plotting import ACCENT, INK, PRIMARY, SECONDARY, save_figure

from .report import BenchmarkReport, Measurement

__all__ = ["plot_speed"]

COLORS = {"fp32": PRIMARY, "fp16": SECONDARY, "int8": ACCENT}
WIDTH, NAME_WIDTH = 11.0, 3.0  # inches
ROW = 0.36  # inches of a bar and its gap
MOST_TAIL = 1.5  # of the longest median; a longer 99th percentile is cut off, and its number is printed


def plot_speed(path: Path, report: BenchmarkReport) -> None:
    """Draw a bar to each model's median call and a line to its 99th percentile, into the PNG file `path`."""
    batches = sorted({row.batch for row in report.measurements})
    height = len(batches) * (len(report.subjects) * ROW + 0.75) + 0.75
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        title = f"{report.machine['cpu']}, {report.machine['threads']} threads: one call, pixels to logits"
        bold = FontProperties(size=13, weight="bold")
        figure.suptitle(fit(title, bold, WIDTH - 0.3), fontproperties=bold, x=0.01, ha="left")
        panels = figure.subplots(len(batches), 1, squeeze=False)[:, 0]
        for axes, batch in zip(panels, batches, strict=True):
            _panel(axes, report, [row for row in report.measurements if row.batch == batch])
            axes.set_title(f"batch {batch}")
        panels[-1].set_xlabel("milliseconds: bar to the median, line to the 99th percentile")
        known = [name for name in COLORS if any(subject.precision == name for subject in report.subjects)]
        if len(known) > 1:
            handles = [Patch(color=COLORS[name], label=name) for name in known]
            figure.legend(handles=handles, loc="outside upper right", ncols=len(known))
        save_figure(figure, path)


def _panel(axes: Axes, report: BenchmarkReport, rows: list[Measurement]) -> None:
    subjects = [report.subjects[row.subject] for row in rows]
    places = range(len(rows))
    axes.barh(
        places,
        [row.p50_ms for row in rows],
        0.62,
        color=[COLORS.get(subject.precision or "", INK) for subject in subjects],
    )
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.p50_ms, row.p99_ms], [place, place], color=INK, linewidth=1, solid_capstyle="butt")
        text = f"{_number(row.p50_ms)} ms, p99 {_number(row.p99_ms)}; {_number(row.images_per_second)} images/s"
        text += f"; {row.speedup:#.3g} times as fast" if row.subject else ""
        axes.text(1.01, place, text, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    font = FontProperties(size=10)
    axes.set_yticks(places, [fit(subject.label, font, NAME_WIDTH) for subject in subjects])
    longest = max(row.p50_ms for row in rows)
    axes.set_xlim(0, min(max(row.p99_ms for row in rows), MOST_TAIL * longest))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
