"""Training: from class folders and a recipe to a checkpoint."""

from __future__ import annotations

from .lr_range_test import check_rate
from .recipe import Recipe, load_recipe, recipe_names
from .run import run_training

__all__ = ["Recipe", "check_rate", "load_recipe", "recipe_names", "run_training"]
