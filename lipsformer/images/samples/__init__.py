"""Fourteen sample photos, one of each kind of fruit, for parity checks and examples.

From the Grocery Store Dataset (Klasson, Zhang and Kjellström, WACV 2019), MIT license, test split.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SAMPLES"]

SAMPLES = Path(__file__).parent
