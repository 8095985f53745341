"""Reading checkpoints: safetensors files whose metadata has all that is needed to use the weights. No pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipsformer.bundle.class_names import parse_class_names
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig, config_from_dict
from lipsformer.model.factory import build_model
from lipsformer.system.errors import InputError

from .pretrained import resolve_model
from .save import CHECKPOINT_KEY, FORMAT

__all__ = ["Checkpoint", "CheckpointHeader", "load_checkpoint", "read_header"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """A checkpoint without its weights."""

    config: ModelConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointHeader):
    """A trained model with everything needed to use it; `model` is in eval mode, on the CPU."""

    model: LipsFormer


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, given its path or the name of a pretrained model.

    Raises:
        InputError: if the file is missing, cut off, not a LipsFormer checkpoint, or does not match its configuration.
    """
    path = resolve_model(path)
    with _opened(path) as file:
        header = _header(path, file)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if problem := _misfit(header.config, tensors):
        raise InputError(f"{path}: its weights do not fit its configuration ({problem}); train or convert it again")
    model = build_model(header.config).eval()
    model.load_state_dict(tensors)
    return Checkpoint(
        model=model,
        config=header.config,
        classes=header.classes,
        preprocessing=header.preprocessing,
        metrics=header.metrics,
    )


def read_header(path: str | Path) -> CheckpointHeader:
    """Reads a checkpoint without its weights.

    Raises:
        InputError: as `load_checkpoint` does, except for problems with the weights.
    """
    path = resolve_model(path)
    with _opened(path) as file:
        return _header(path, file)


def _header(path: Path, file: Any) -> CheckpointHeader:
    text = (file.metadata() or {}).get(CHECKPOINT_KEY)
    if text is None:
        raise InputError(
            f"{path}: a safetensors file, but not a LipsFormer checkpoint (no '{CHECKPOINT_KEY}' metadata)"
        )
    metadata = json.loads(text)
    try:
        found = metadata["format"]
        if found == FORMAT:
            config = config_from_dict(metadata["config"])
            preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
            classes, metrics = parse_class_names(metadata["classes"]), dict(metadata["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); train or convert it again") from None
    if found != FORMAT:
        raise InputError(f"{path}: checkpoint format {found}, this version reads {FORMAT}; update lipsformer")
    if len(classes) != config.num_classes:
        raise InputError(
            f"{path}: {len(classes)} class names for {config.num_classes} outputs; train or convert it again"
        )
    if preprocessing.image_size != config.image_size:
        raise InputError(
            f"{path}: preprocessing gives {preprocessing.image_size} pixels to a model of {config.image_size}; "
            "train or convert it again"
        )
    return CheckpointHeader(config=config, classes=classes, preprocessing=preprocessing, metrics=metrics)


def _misfit(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that does not fit the model of `config`, in words; None if all fit.

    Compared on the meta device: a wrong configuration must not allocate memory.
    """
    with torch.device("meta"):
        needed = {name: list(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(needed.keys() | found.keys()):
        if found.get(name) != needed.get(name):
            return f"{name} is {found.get(name, 'missing')}, needed {needed.get(name, 'nothing of this name')}"
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give the .safetensors file that `lipsformer train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); is the file whole?") from None
