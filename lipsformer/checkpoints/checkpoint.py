"""Reading checkpoints: safetensors files whose metadata has all that is needed to use the weights. No pickle."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lipsformer.bundle.acceptance import AcceptanceRule, FeatureSpace
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.system.errors import InputError, check_fields

from .header import CheckpointHeader, open_checkpoint, parse_header
from .pretrained import resolve_model
from .save import SPACE_ARRAYS, SPACE_PREFIX

__all__ = ["Checkpoint", "CheckpointHeader", "load_checkpoint", "read_header"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointHeader):
    """A trained model with everything needed to use it; `model` is in eval mode, on the CPU.

    `model` is as it was trained: its logits divided by `temperature` are the calibrated ones.
    """

    model: LipsFormer
    space: FeatureSpace | None = None

    @property
    def acceptance(self) -> AcceptanceRule | None:
        """When an answer of the model is accepted; None if it was never calibrated for that."""
        if self.thresholds is None or self.space is None:
            return None
        return AcceptanceRule(thresholds=self.thresholds, space=self.space)

    def calibrated(self) -> LipsFormer:
        """The model with the temperature folded into its head; it shares all else with `model`."""
        if self.temperature == 1.0:
            return self.model
        model = copy.deepcopy(
            self.model, {id(part): part for part in self.model.children() if part is not self.model.head}
        )
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.div_(self.temperature)
        return model


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, given its path or the name of a pretrained model.

    Raises:
        InputError: if the file is missing, cut off, not a LipsFormer checkpoint, or does not match its configuration.
    """
    path = resolve_model(path)
    with open_checkpoint(path) as file:
        header = parse_header(path, file)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        space = _take_space(header, tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
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
        temperature=header.temperature,
        thresholds=header.thresholds,
        reference=header.reference,
        space=space,
    )


def read_header(path: str | Path) -> CheckpointHeader:
    """Reads a checkpoint without its weights.

    Raises:
        InputError: as `load_checkpoint` does, except for problems with the weights.
    """
    path = resolve_model(path)
    with open_checkpoint(path) as file:
        return parse_header(path, file)


def _take_space(header: CheckpointHeader, tensors: dict[str, Tensor]) -> FeatureSpace | None:
    """Removes the feature space that belongs to the thresholds from `tensors`."""
    if header.thresholds is None:
        return None
    arrays = {name: tensors.pop(SPACE_PREFIX + name).numpy() for name in SPACE_ARRAYS if SPACE_PREFIX + name in tensors}
    check_fields(arrays, SPACE_ARRAYS, "array of the acceptance")
    space = FeatureSpace(**arrays)
    space.check_channels(header.config.features)
    return space


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
