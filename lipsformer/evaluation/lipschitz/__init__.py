"""Lipschitz constants of a model: upper bounds of each layer and of the network, lower bounds at images, a report."""

from __future__ import annotations

from .report import format_lipschitz, measure_lipschitz

__all__ = ["format_lipschitz", "measure_lipschitz"]
