"""Training: from class folders and a recipe to a checkpoint.

The names below are imported when first used, so that importing this package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recipe import Recipe, load_recipe, recipe_names
    from .run import run_training

__all__ = ["Recipe", "load_recipe", "recipe_names", "run_training"]

_HOMES = {"Recipe": "recipe", "load_recipe": "recipe", "recipe_names": "recipe", "run_training": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
