"""The report of `lipsformer certify`: a Markdown table, JSON and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lipsformer.system.markdown import escape, markdown_table
from lipsformer.system.plotting import ACCENT, PRIMARY, SECONDARY, STYLE, save_figure

from .certify import Certification

__all__ = ["format_certification", "plot_certification", "write_certification"]


def format_certification(found: Certification) -> str:
    """The report in Markdown."""
    rows = [
        [name, *(f"{value:.1%}" for value in (row.certified, row.attacked_certified))]
        + [f"{value:.1%}" for value in (row.attacked_pgd, row.attacked_random_search)]
        for name, row in found.rows.items()
    ]
    headings = ["radius", "certified", "certified, attacked images", "under PGD", "under random search"]
    unread = f", {found.unreadable} unreadable" if found.unreadable else ""
    return "\n".join(
        [
            f"# Certified accuracy of {escape(found.model)}",
            "",
            f"{found.images} images ({found.split}{unread}), {found.attacked} of them attacked. Radii are L2 of pixels "
            "from 0 to 1, as the network sees them.",
            "",
            f"- accuracy: {found.clean:.2%}; {found.attacked_clean:.1%} of the attacked images",
            f"- Lipschitz bound from pixels to features: {found.lipschitz:.5g}",
            f"- median certified radius: {float(np.median(found.radii)):.4f}, 0 for a wrong answer",
            f"- subtracted from every lead for rounding: {found.rounding:.1e}; measured {found.measured_rounding:.1e}",
            "",
            markdown_table(headings, rows, "l" + "r" * 4),
        ]
    )


def plot_certification(path: Path, found: Certification) -> None:
    """Draw certified accuracy against radius, and the accuracies under attack, into the PNG file `path`."""
    largest = max([*(row.radius for row in found.rows.values()), float(found.radii.max())]) * 1.05
    grid = np.linspace(0, largest, 400)
    curve = [found.clean, *((found.radii > radius).mean() for radius in grid[1:])]
    radii = [row.radius for row in found.rows.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(grid, np.multiply(curve, 100), color=PRIMARY, linewidth=2, label=f"certified, {found.images} images")
        for name, color, marker in (("pgd", ACCENT, "v"), ("random_search", SECONDARY, "s")):
            values = [100 * getattr(row, f"attacked_{name}") for row in found.rows.values()]
            label = f"{'PGD' if name == 'pgd' else 'random search'}, {found.attacked} images"
            axes.plot(radii, values, marker, color=color, label=label)
        axes.set(xlabel="radius (L2 of pixels from 0 to 1)", ylabel="accuracy (%)", ylim=(0, 100), xlim=(0, largest))
        axes.set_title(f"{Path(found.model).name}: certified accuracy")
        axes.legend(loc="upper right")
        save_figure(figure, path)


def write_certification(found: Certification, folder: Path) -> None:
    """Write certified.json, certified.md and certified.png into `folder`."""
    (folder / "certified.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "certified.md").write_text(format_certification(found) + "\n", encoding="utf-8")
    plot_certification(folder / "certified.png", found)
