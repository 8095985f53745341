"""The files of a Lipschitz report."""

from __future__ import annotations

import json
from pathlib import Path

from .plot import plot_bounds
from .report import LipschitzReport, format_lipschitz

__all__ = ["write_report"]


def write_report(report: LipschitzReport, folder: Path) -> None:
    """Write lipschitz.json, lipschitz.md and lipschitz.png into `folder`."""
    (folder / "lipschitz.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "lipschitz.md").write_text(format_lipschitz(report) + "\n", encoding="utf-8")
    plot_bounds(folder / "lipschitz.png", report)
