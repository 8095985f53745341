"""Reading checkpoints: safetensors files whose metadata has all that is needed to use the weights. No pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.system.errors import InputError

from .header import CheckpointHeader, open_checkpoint, parse_header
from .pretrained import resolve_model

__all__ = ["Checkpoint", "CheckpointHeader", "load_checkpoint", "read_header"]


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
    with open_checkpoint(path) as file:
        header = parse_header(path, file)
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
    with open_checkpoint(path) as file:
        return parse_header(path, file)


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
