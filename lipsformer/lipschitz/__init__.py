"""Lipschitz numbers of a model: upper bounds of every layer and of the whole, lower bounds on images, a report."""

from __future__ import annotations

from .report import measure_lipschitz, render
from .write import write_report

__all__ = ["measure_lipschitz", "render", "write_report"]
