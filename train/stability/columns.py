"""The columns of a stability grid: each is a model and the settings that it trains with, besides those of all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lipsformer.model.variants import make_config
from lipsformer.system.errors import InputError
from lipsformer.train.recipe import Recipe, load_recipe

__all__ = ["DEFAULT_COLUMNS", "Column", "read_columns"]

DEFAULT_COLUMNS = ("lipsformer_cswin_nano", "cswin_nano")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]*")  # it names a folder
# What is the grid's, and the option to use.
DECIDED = {"learning_rate": "--learning-rates", "model": "--column", "model.name": "--column"}
OF_ALL = {**DECIDED, "seed": "--set and --seeds"}  # what no column has alone


class Column(NamedTuple):
    """A column's label and its recipe, with the first learning rate and the first seed."""

    label: str
    recipe: Recipe


def read_columns(
    texts: Sequence[str], recipe: str, epochs: int | None, overrides: Sequence[str], rate: float
) -> tuple[Column, ...]:
    """The columns that texts such as "capped: lipsformer_cswin_nano spectral_cap=1" describe.

    A text is [LABEL:] VARIANT [KEY=VALUE ...]; without a label, the variant is the label. `overrides` change them all.
    If the [model] table of `recipe` names one of the variants, its other settings apply to all columns; otherwise the
    table is ignored.

    Raises:
        InputError: if a text cannot be read, two columns are the same, or a setting is invalid or the grid's.
    """
    _check_keys("--set", overrides, DECIDED)
    start = load_recipe(recipe)
    if load_recipe(start, overrides).method == "probe":
        raise InputError("lipsformer stability: a probe has no learning rate; choose another --recipe")
    parsed = [_parse(text) for text in texts]
    shape = start.model if start.model["name"] in [variant for _, variant, _ in parsed] else {}
    fixed = {f"model.{field}": value for field, value in shape.items() if field != "name"} | {"learning_rate": rate}
    if epochs is not None:
        fixed["epochs"] = epochs
    columns: list[Column] = []
    for label, variant, settings in parsed:
        own = load_recipe(start, {"model.name": variant})
        for changes in (fixed, overrides, settings):
            own = load_recipe(own, changes)
        training = _training(own)
        for other in columns:
            if other.label == label:
                raise InputError(f"--column: two are called '{label}'; write one as 'LABEL: {variant} ...'")
            if _training(other.recipe) == training:
                raise InputError(f"--column: '{other.label}' and '{label}' are the same training here; change one")
        columns.append(Column(label, own))
    return tuple(columns)


def _parse(text: str) -> tuple[str, str, list[str]]:
    """Label, variant and settings."""
    label, colon, rest = text.partition(": ")
    try:
        variant, *settings = shlex.split(rest if colon else text)  # an empty text is a ValueError, too
    except ValueError:
        raise InputError(f"--column '{text}': write [LABEL:] VARIANT [KEY=VALUE ...]") from None
    label = label.strip() if colon else variant
    if not LABEL.fullmatch(label):
        raise InputError(f"--column '{text}': a label has letters, digits, spaces and any of _ . + -")
    _check_keys(f"--column '{text}'", settings, OF_ALL)
    return label, variant, settings


def _check_keys(where: str, settings: Sequence[str], decided: Mapping[str, str]) -> None:
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in decided:
            raise InputError(f"{where}: the grid decides {key}; use {decided[key]}")


def _training(recipe: Recipe) -> tuple[object, ...]:
    """All that distinguishes two trainings: a variant and its settings may be those of another.

    Raises:
        InputError: if the variant or one of its settings is unknown or invalid.
    """
    return make_config(**recipe.model), {name: value for name, value in recipe.to_dict().items() if name != "model"}
