"""Training: from class folders and a recipe to a checkpoint."""

from __future__ import annotations

from .lr_range_test import run_lr_range_test
from .recipe import Recipe, load_recipe, recipe_names
from .run import run_training

__all__ = ["Recipe", "load_recipe", "recipe_names", "run_lr_range_test", "run_training"]
