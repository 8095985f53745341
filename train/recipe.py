"""Recipes: every setting that decides how a model is trained, as validated data.

A recipe is a TOML file with the values that differ from the recipe that it `extends`, by default
`recipes/default.toml`.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass

from lipsformer.model.config import STAGES
from lipsformer.system.errors import InputError, suggest
from lipsformer.system.renamed_keys import RECIPE_KEYS, current_keys
from lipsformer.system.validation import one_line_errors
from lipsformer.train.distillation.settings import DistillationTable

__all__ = ["Recipe", "flat", "load_recipe", "recipe_names"]

PACKAGED = Path(__file__).parent / "recipes"
DEFAULT = PACKAGED / "default.toml"
EXTENDS = "extends"
TABLES = ("model", "distillation")
EXAMPLES = {"model": "model.name or model.drop_path", "distillation": "distillation.teacher or distillation.weight"}
# Without effect on the result: a run may be resumed with other values of these.
WITHOUT_EFFECT = ("workers", "save_every", "grad_checkpointing")
# Files, and the hashes of their contents: a file may be moved between two runs.
HASHED = {
    "distillation.teacher": "distillation.sha256",
    "distillation.weights": "distillation.sha256",
    "distillation.preprocessing.classes": "distillation.preprocessing.classes_sha256",
}

Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
# TOML and JSON have lists where the fields promise tuples.
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False)]
Range = Annotated[tuple[PositiveShare, PositiveShare], Field(strict=False)]
PixelRange = Annotated[tuple[float, float], Field(strict=False)]


def _toml(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _toml_lines(table: Mapping[str, Any], name: str = "") -> list[str]:
    """The lines of a TOML table: its values, then its tables. TOML has no null: what is None is left out."""
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, Mapping | None)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}{key}]", *_toml_lines(value, f"{name}{key}.")]
    return lines


@functools.partial(one_line_errors, what="recipe", show=_toml, ranges=False)
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Recipe:
    """Training settings; `recipes/default.toml` explains each one.

    `model` holds `name`, a variant or a checkpoint to start from, and the fields of its configuration to change. Only
    `StartingPoint.resolve` checks those: a recipe opens no file.

    Raises:
        InputError: if a value is unknown (suggests the nearest key), missing or invalid.
    """

    method: Literal["train", "probe"] = "train"  # older recipes lack these two
    crops: NotNegativeInt = 0
    epochs: Count
    batch_size: Count
    grad_accum_steps: Count
    optimizer: Literal["adamw", "adamw2", "muon"]
    learning_rate: Positive
    lr_base_batch_size: NotNegativeInt
    layer_decay: PositiveShare
    freeze: Annotated[int, Field(ge=0, le=STAGES)]
    weight_decay: NotNegative
    betas: Betas
    clip_grad: Positive
    ema_decay: BelowOne
    patience: NotNegativeInt
    precision: Literal["auto", "float32", "bfloat16", "float64"]
    compile: bool
    grad_checkpointing: bool
    spectral_cap: NotNegative = 0.0  # older recipes lack these four
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    margin: NotNegative = 0.0
    margin_ramp: Share = 0.0
    label_smoothing: BelowOne
    crop_scale: Range
    shift: Annotated[int, Field(ge=0, le=31)] = 0  # older recipes lack this one
    hflip: Share
    rand_augment: Annotated[float, Field(ge=0, le=10)]
    mixup: NotNegative
    cutmix: NotNegative
    random_erasing: Share
    crop_pct: PositiveShare
    pixel_range: Literal["auto", "full"] | PixelRange = "auto"  # older recipes lack these three
    color_management: bool = True
    jpeg_scale: Literal["full", "reduced"] = "reduced"
    balanced: bool
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    workers: NotNegativeInt
    save_every: Count
    model: Mapping[str, Any]
    distillation: DistillationTable | None = None

    @field_validator("crop_scale")
    @classmethod
    def _check_crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"crop_scale={_toml(value)}: the first number must not be above the second")
        return value

    @field_validator("pixel_range")
    @classmethod
    def _check_pixel_range(cls, value: str | tuple[float, float]) -> str | tuple[float, float]:
        if not isinstance(value, str) and value[0] >= value[1]:
            raise ValueError(f"pixel_range={_toml(value)}: the first number must be below the second")
        return value

    @field_validator("model")
    @classmethod
    def _check_model(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError(
                "the [model] table needs the name of a variant or checkpoint, as in name = 'lipsformer_tiny'"
            )
        if "num_classes" in value:
            raise ValueError("model.num_classes: omit it, the class folders decide it")
        return value

    def to_flat_dict(self) -> dict[str, Any]:
        """Plain data, with dotted keys instead of tables: {"epochs": 10, "model.name": ...}."""
        return flat(self.to_dict())

    @property
    def peak_rate(self) -> float:
        """The learning rate of the first step: linear in the batch size if `lr_base_batch_size` is set.

        This is the linear scaling rule of Goyal et al. (2017).
        """
        return self.learning_rate * (self.batch_size / self.lr_base_batch_size if self.lr_base_batch_size else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe with the values of `data`, which must be complete.

        Raises:
            InputError: as the constructor.
        """
        return cls(**current_keys(data, RECIPE_KEYS))

    def to_toml(self) -> str:
        """The recipe as a TOML file that `load_recipe` reads."""
        return "\n".join([*_toml_lines(self.to_dict()), ""])

    def differences(self, other: Recipe) -> list[str]:
        """The values that `other` changes, a line each, without those that cannot change the result."""
        before, after = self.to_flat_dict(), other.to_flat_dict()
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        moved = [
            path for path, content in HASHED.items() if before.get(content) and before[content] == after.get(content)
        ]
        names = [name for name in changed if name not in (*WITHOUT_EFFECT, *moved)]
        return [f"{name} was {_toml(before.get(name))}, is {_toml(after.get(name))}" for name in names]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and their gradients."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def autocasts(self, device: torch.device) -> bool:
        """Whether matrix products and convolutions are computed in bfloat16 on `device`."""
        if self.precision == "auto":
            return device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.precision == "bfloat16"


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load_recipe(
    base: str | Path | Recipe,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    model: str | None = None,
    epochs: int | None = None,
    teacher: str | None = None,
) -> Recipe:
    """Reads a recipe, then applies `model`, `epochs`, `teacher` and `overrides`, in this order.

    Args:
        base: a packaged recipe, the path of a TOML file, or a recipe to start from.
        overrides: values by dotted key ({"model.drop_path": 0.1}), or "key=value" texts with the value in TOML.
        model: the model's name.
        epochs: the number of epochs.
        teacher: the model to distill from.

    Raises:
        InputError: if there is no such recipe, or it or an override cannot be read or is invalid, or an override
            contradicts `model`, `epochs` or `teacher`.
    """
    data = base.to_dict() if isinstance(base, Recipe) else _read_chain(_find(str(base)))
    if not isinstance(overrides, Mapping):
        overrides = dict(_parse(text) for text in overrides)
    options = {
        "--model": ("model.name", model),
        "--epochs": ("epochs", epochs),
        "--teacher": ("distillation.teacher", teacher),
    }
    chosen = {key: value for key, value in options.values() if value is not None}
    for key, value in (*chosen.items(), *current_keys(overrides, RECIPE_KEYS).items()):
        table, *names = key.split(".")
        if names and table not in TABLES:
            raise InputError(
                f"recipe: unknown key '{key}': only {' and '.join(f'{name}.<field>' for name in TABLES)} have a dot"
            )
        _merge(data, {table: functools.reduce(lambda inner, name: {name: inner}, reversed(names), value)})
    for option, (key, value) in options.items():
        if (found := flat(data).get(key)) != chosen.get(key, found):
            raise InputError(f"{option} {value}: --set {key}={_toml(found)} contradicts it; give only one of the two")
    return Recipe.from_dict(data)


def _find(name: str) -> Path:
    if name in recipe_names():
        return PACKAGED / f"{name}.toml"
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    raise InputError(f"unknown recipe '{name}': {suggest(name, recipe_names())} (a path ends in .toml)")


def _read_chain(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe merged over those that it extends; `below` are the files that led here."""
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
        if name not in TABLES:
            data[name] = value
            continue
        if not isinstance(value, Mapping):
            raise InputError(f"recipe: {name}={_toml(value)}: it is a table; set its values, as {EXAMPLES[name]}")
        # Another variant or teacher brings what belongs to it: changes meant for the first one do not carry over.
        kept, key = dict(data.get(name) or {}), "name" if name == "model" else "teacher"
        if value.get(key, kept.get(key)) != kept.get(key):
            kept = {} if name == "model" else {field: kept[field] for field in kept if field != "sha256"}
        data[name] = _merged(kept, value)


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(table[name], value)
        for name, value in changes.items()
        if isinstance(value, Mapping) and isinstance(table.get(name), Mapping)
    }
    return {**table, **changes, **nested}


def _parse(text: str) -> tuple[str, Any]:
    """Splits "key=value". A value that is not TOML is a string, so that names need no quotes."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value:
        raise InputError(f"--set {text}: write it as key=value, as in --set learning_rate=2e-3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def flat(data: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """The values of nested tables, with dotted keys."""
    values = {f"{table}{name}": value for name, value in data.items() if not isinstance(value, Mapping)}
    for name, value in data.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{table}{name}.")
    return values
