"""Training: from class folders and a recipe to a checkpoint. The names below are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipsformer.system.extras import import_public, require

if TYPE_CHECKING:
    from .preview.dry_run import describe_training
    from .preview.lr_range_test import run_lr_range_test
    from .recipe import Recipe, load_recipe, recipe_names
    from .run import run_training

__all__ = ["Recipe", "describe_training", "load_recipe", "recipe_names", "run_lr_range_test", "run_training"]

_HOMES = {
    "Recipe": "recipe",
    "describe_training": "preview.dry_run",
    "load_recipe": "recipe",
    "recipe_names": "recipe",
    "run_lr_range_test": "preview.lr_range_test",
    "run_training": "run",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        require("train")
    return import_public(__name__, _HOMES, name)
