"""What strict JSON cannot hold becomes null, at any depth; everything else stays."""

from __future__ import annotations

import json

from lipsformer.system.strict_json import finite


def test_numbers_that_are_not_finite_become_null() -> None:
    data = {"a": [1.5, float("nan"), {"b": (float("inf"), -float("inf"), 2)}], "c": "nan", "d": None, "e": True}
    cleaned = finite(data)
    assert cleaned == {"a": [1.5, None, {"b": [None, None, 2]}], "c": "nan", "d": None, "e": True}
    json.dumps(cleaned, allow_nan=False)
