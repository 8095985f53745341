"""Colors and matplotlib style of all plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .atomic import atomic_write

__all__ = ["ACCENT", "DPI", "FAINT", "INK", "PRIMARY", "SECONDARY", "STYLE", "save_figure"]

PRIMARY, SECONDARY, ACCENT, INK, FAINT = "#1f5fbf", "#8a94a6", "#c2571a", "#1d2433", "#d8dde6"
DPI = 150
STYLE: dict[Any, Any] = {  # for matplotlib.rc_context
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` as a PNG file at 150 dpi, atomically."""
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=DPI)
