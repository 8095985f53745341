"""Recipes: everything that decides how a model is trained, as validated data.

A recipe is a TOML file that says how it differs from the one that it `extends`, by default `recipes/default.toml`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from lipsformer.model.config import STAGES
from lipsformer.system.errors import InputError, check_fields, suggest
from lipsformer.system.renamed_keys import RECIPE_KEYS, current_keys

from .initial_weights import start_config

__all__ = ["Recipe", "load_recipe", "recipe_names"]

PACKAGED = Path(__file__).parent / "recipes"
DEFAULT = PACKAGED / "default.toml"
EXTENDS = "extends"
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "two numbers, as in [0.35, 1.0]",
}
PRECISIONS = ("auto", "float32", "bfloat16", "float64")
OPTIMIZERS = ("adamw", "muon")
Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda v: v >= 1, "at least 1")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "at least 0")
SHARE: Rule = (lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_ONE: Rule = (lambda v: 0 <= v < 1, "at least 0 and below 1")
RANGES: dict[str, Rule] = {
    "epochs": POSITIVE,
    "batch_size": POSITIVE,
    "grad_accum_steps": POSITIVE,
    "optimizer": (lambda v: v in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    "learning_rate": (lambda v: v > 0, "above 0"),
    "lr_base_batch_size": NOT_NEGATIVE,
    "layer_decay": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "freeze": (lambda v: 0 <= v <= STAGES, f"from 0 to {STAGES}"),
    "weight_decay": NOT_NEGATIVE,
    "betas": (lambda v: all(0 <= beta < 1 for beta in v), "each at least 0 and below 1"),
    "clip_grad": (lambda v: v > 0, "above 0"),
    "label_smoothing": BELOW_ONE,
    "ema_decay": BELOW_ONE,
    "patience": NOT_NEGATIVE,
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "crop_scale": (lambda v: 0 < v[0] <= v[1] <= 1, "rising, above 0 and at most 1"),
    "hflip": SHARE,
    "rand_augment": (lambda v: 0 <= v <= 10, "between 0 and 10"),
    "mixup": NOT_NEGATIVE,
    "cutmix": NOT_NEGATIVE,
    "random_erasing": SHARE,
    "crop_pct": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "seed": (lambda v: 0 <= v < 2**63, "at least 0 and below 2**63"),
    "workers": NOT_NEGATIVE,
    "save_every": POSITIVE,
}
# Without effect on the result: a run may be resumed with other values of these.
WITHOUT_EFFECT = ("workers", "save_every", "grad_checkpointing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; `recipes/default.toml` explains each value.

    `model` holds `name`, a variant or a checkpoint to start from, and the fields of its configuration to change.

    Raises:
        InputError: if a value has the wrong type or is out of range; the message names it.
    """

    epochs: int
    batch_size: int
    grad_accum_steps: int
    optimizer: str
    learning_rate: float
    lr_base_batch_size: int
    layer_decay: float
    freeze: int
    weight_decay: float
    betas: tuple[float, float]
    clip_grad: float
    ema_decay: float
    patience: int
    precision: str
    compile: bool
    grad_checkpointing: bool
    label_smoothing: float
    crop_scale: tuple[float, float]
    hflip: float
    rand_augment: float
    mixup: float
    cutmix: float
    random_erasing: float
    crop_pct: float
    balanced: bool
    seed: int
    workers: int
    save_every: int
    model: Mapping[str, Any]

    def __post_init__(self) -> None:
        # TOML and JSON hand over lists; the annotations promise tuples.
        for name in ("betas", "crop_scale"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, kind in self._kinds().items():
            if not _is_a(kind, getattr(self, name)):
                raise InputError(f"recipe: {name}={_toml(getattr(self, name))}: {KINDS[kind]} is needed")
        for name, (holds, needed) in RANGES.items():
            if not holds(getattr(self, name)):
                raise InputError(f"recipe: {name}={_toml(getattr(self, name))}: it must be {needed}")
        if not isinstance(self.model.get("name"), str):
            raise InputError(
                "recipe: the [model] table needs the name of a variant or checkpoint, as in name = 'lipsformer_tiny'"
            )
        if "num_classes" in self.model:
            raise InputError("recipe: model.num_classes: leave it out, the class folders decide it")
        start_config(self.model)

    @property
    def peak_rate(self) -> float:
        """The learning rate of the first step: linear in the batch size where `lr_base_batch_size` says so.

        The linear rule is Goyal et al.'s (2017).
        """
        return self.learning_rate * (self.batch_size / self.lr_base_batch_size if self.lr_base_batch_size else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe of `data`, which must hold every value.

        Raises:
            InputError: if a value is unknown (the near one is suggested), missing or invalid.
        """
        data = current_keys(data, RECIPE_KEYS)
        check_fields(data, [field.name for field in dataclasses.fields(cls)], "recipe key")
        return cls(**data)

    def to_toml(self) -> str:
        """The recipe as a file that `load_recipe` reads."""
        data = self.to_dict()
        model = data.pop("model")
        lines = [f"{name} = {_toml(value)}" for name, value in data.items()]
        return "\n".join([*lines, "", "[model]", *(f"{name} = {_toml(value)}" for name, value in model.items()), ""])

    def differences(self, other: Recipe) -> list[str]:
        """What `other` changes, a line for each value; values that cannot change the result are left out."""
        before, after = _flat(self.to_dict()), _flat(other.to_dict())
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        names = [name for name in changed if name not in WITHOUT_EFFECT]
        return [f"{name} was {_toml(before.get(name))}, is {_toml(after.get(name))}" for name in names]

    def autocasts(self, device: torch.device) -> bool:
        """Whether matrix products and convolutions are computed in bfloat16 on `device`."""
        if self.precision == "auto":
            return device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.precision == "bfloat16"

    @classmethod
    def _kinds(cls) -> dict[str, type]:
        names = {"bool": bool, "int": int, "float": float, "str": str, "tuple[float, float]": tuple}
        return {field.name: names[str(field.type)] for field in dataclasses.fields(cls) if str(field.type) in names}


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load_recipe(name: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `overrides`.

    Args:
        name: a packaged recipe, the path of a TOML file, or a recipe to start from.
        overrides: values by dotted key ({"model.drop_path": 0.1}), or texts "key=value" with the value in TOML.

    Raises:
        InputError: if there is no such recipe, or it or an override cannot be read or is invalid.
    """
    data = name.to_dict() if isinstance(name, Recipe) else _read_chain(_find(str(name)))
    if not isinstance(overrides, Mapping):
        overrides = dict(_parse(text) for text in overrides)
    overrides = current_keys(overrides, RECIPE_KEYS)
    for key, value in overrides.items():
        table, _, field = key.rpartition(".")
        if table not in ("", "model"):
            raise InputError(f"recipe: unknown key '{key}': only model.<field> has a dot")
        _merge(data, {table: {field: value}} if table else {field: value})
    return Recipe.from_dict(data)


def _find(name: str) -> Path:
    if name in recipe_names():
        return PACKAGED / f"{name}.toml"
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    raise InputError(f"unknown recipe '{name}': {suggest(name, recipe_names())} (a path ends in .toml)")


def _read_chain(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe on top of those that it extends; `below` are the files that led here."""
    if path in below:
        raise InputError(f"{below[-1]}: {EXTENDS} leads back to {path}; remove one of the two")
    changes = _read(path)
    base = changes.pop(EXTENDS, None if path == DEFAULT else "default")
    if base is None:
        return changes
    if not isinstance(base, str):
        raise InputError(f"{path}: {EXTENDS}={_toml(base)}: the name of one recipe is needed")
    found = _find(base)
    data = _read_chain(found if found.parent == PACKAGED else path.parent / found, (*below, path))
    _merge(data, changes)
    return data


def _read(path: Path) -> dict[str, Any]:
    try:
        return current_keys(tomllib.loads(path.read_text(encoding="utf-8")), RECIPE_KEYS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; packaged ones: {', '.join(recipe_names())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _merge(data: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if name != "model":
            data[name] = value
        elif isinstance(value, Mapping):
            # Another variant brings its own configuration: changes that were meant for the first do not carry over.
            kept = {} if value.get("name", data["model"]["name"]) != data["model"]["name"] else data["model"]
            data["model"] = {**kept, **value}
        else:
            raise InputError(f"recipe: model={_toml(value)}: it is a table; set model.name, model.drop_path and so on")


def _parse(text: str) -> tuple[str, Any]:
    """Splits "key=value". A value that is not TOML is taken as a text, so that names need no quotes."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value:
        raise InputError(f"--set {text}: give it as key=value, as in --set learning_rate=2e-3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _is_a(kind: type, value: Any) -> bool:
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == 2 and all(_is_a(float, item) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) and math.isfinite(value) if kind is float else isinstance(value, kind)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    model = {f"model.{name}": value for name, value in data["model"].items()}
    return {name: value for name, value in data.items() if name != "model"} | model


def _toml(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False, default=str)
