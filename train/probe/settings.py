"""The settings of a recipe that a probe uses. The others are refused: none is silently without effect."""

from __future__ import annotations

from lipsformer.system.errors import InputError
from lipsformer.train.recipe import WITHOUT_EFFECT, Recipe, load_recipe

__all__ = ["check_method"]

USED = (
    "method",
    "crops",
    "batch_size",
    "precision",
    "label_smoothing",
    "crop_scale",
    "hflip",
    "crop_pct",
    "pixel_range",
    "color_management",
    "jpeg_scale",
    "balanced",
    "seed",
    "model",
)


def check_method(recipe: Recipe) -> None:
    """Checks that a recipe sets nothing that its method does not use.

    Raises:
        InputError: if a probe's recipe differs from the packaged recipe `probe` in another setting or has the precision
            bfloat16, or another recipe has `crops`.
    """
    if recipe.method != "probe":
        if recipe.crops:
            raise InputError(f'recipe: crops={recipe.crops}: only a probe (method = "probe") uses it; omit it')
        return
    values, packaged = recipe.to_dict(), load_recipe("probe").to_dict()
    unused = [name for name in values if name not in (*USED, *WITHOUT_EFFECT) and values[name] != packaged[name]]
    if unused:
        them = "it" if len(unused) == 1 else "them"
        raise InputError(
            f'recipe: a probe (method = "probe") does not use {", ".join(unused)}; omit {them}, or base the '
            'recipe on the packaged one with extends = "probe"'
        )
    if recipe.precision == "bfloat16":
        raise InputError('recipe: precision="bfloat16": a probe computes in full precision; use "auto" or "float64"')
