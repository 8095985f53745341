"""Plain data for strict JSON, which has no NaN and no infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["finite"]


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with None for every number that is not finite, in nested mappings and sequences too."""
    return {name: _finite(value) for name, value in data.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
