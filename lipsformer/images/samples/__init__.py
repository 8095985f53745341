"""Fourteen real photos that ship with the package, one of each kind of fruit: for parity checks and first tries.

From the Grocery Store Dataset (Klasson, Zhang and Kjellström, WACV 2019), MIT license; taken from its test split.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SAMPLES"]

SAMPLES = Path(__file__).parent
