"""The files of a speed report."""

from __future__ import annotations

import json
from pathlib import Path

from .plot import plot_speed
from .report import BenchmarkReport, format_speed

__all__ = ["write_report"]


def write_report(report: BenchmarkReport, folder: Path) -> None:
    """Write benchmark.json, benchmark.md and benchmark.png into `folder`."""
    (folder / "benchmark.json").write_text(
        json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    (folder / "benchmark.md").write_text(format_speed(report) + "\n", encoding="utf-8")
    plot_speed(folder / "benchmark.png", report)
