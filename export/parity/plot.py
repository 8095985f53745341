"""The plot of the parity report: the error of every image in every file, and the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lipsformer.evaluation.report.text import NAMES_STYLE, any_script, elide
from lipsformer.system.plotting import ACCENT, FAINT, INK, PRIMARY, SECONDARY, save_figure

from .check import FileParity

__all__ = ["plot_errors"]

FLOOR = 1e-8  # below float32's rounding: equal logits are drawn here
ROW = 0.62  # inches
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plot_errors(path: Path, files: Sequence[FileParity], source: str) -> None:
    """Draw the relative L2 error of each photo and hard input, one row per file, into the PNG file `path`."""
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(8.6, 1.75 + ROW * len(files)), layout="constrained")
        axes = figure.add_subplot()
        for row, file in enumerate(files):
            _draw(axes, row, file)
        axes.set_xscale("log")
        axes.set_xlim(FLOOR / 2, max(2.0, *(4 * float(np.max(file.errors, initial=0)) for file in files)))
        axes.xaxis.set_major_formatter(lambda value, _: "10" + f"{np.log10(value):.0f}".translate(SUPERSCRIPT))
        axes.tick_params(which="minor", bottom=False)
        axes.set_ylim(len(files) - 0.4, -0.65)
        axes.set_yticks(range(len(files)), [_label(file) for file in files])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            f"relative L2 error of the logits (log scale; worst of all batch sizes)\nphotos: {elide(source, 80)}"
        )
        axes.set_title("Every image, compared with the checkpoint", fontsize=11, pad=22)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1, handletextpad=0.4)
        save_figure(figure, path)


def _draw(axes: Axes, row: int, file: FileParity) -> None:
    label = (lambda text: text) if row == 0 else (lambda _: None)
    photos, hard = _shown(file.errors), _shown(file.hard_errors)
    axes.axhspan(row - 0.32, row + 0.32, color=FAINT, alpha=0.25, linewidth=0)
    spots = np.random.default_rng(0).uniform(-0.2, 0.2, len(photos))
    axes.scatter(photos, row + spots, s=9, color=PRIMARY, alpha=0.5, linewidths=0, label=label("photo"))
    axes.scatter(hard, np.full(len(hard), row), s=26, marker="D", facecolors="none", edgecolors=ACCENT, linewidths=1.1,
                 label=label("hard input"), zorder=3)  # fmt: skip
    limit = file.limits.get("relative_l2")
    if limit is not None:
        axes.plot([limit] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.8, label=label("limit for photos"))
        axes.annotate(f"{limit:g}", (limit, row - 0.32), xytext=(3, -1), textcoords="offset points", fontsize=8,
                      color=SECONDARY, va="top")  # fmt: skip


def _label(file: FileParity) -> str:
    name = file.file if file.passed else f"{file.file} FAILED"
    return f"{name}\non {file.provider.removesuffix('ExecutionProvider')}"


def _shown(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(errors[np.isfinite(errors)], FLOOR)
