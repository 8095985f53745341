"""Where a training starts: a variant with fresh weights, or the weights of a checkpoint (fine-tuning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lipsformer.bundle.pretrained import PRETRAINED
from lipsformer.checkpoints.checkpoint import load_checkpoint, read_header
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.model.variants import make_config
from lipsformer.system.errors import InputError

__all__ = ["start_config", "start_model", "start_preprocessing", "starts_from_checkpoint"]


def starts_from_checkpoint(name: str) -> bool:
    """Whether a recipe's `model.name` is a checkpoint, by its path or the name of one that we ship."""
    return name in PRETRAINED or name.endswith(".safetensors")


def start_config(model: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a recipe's [model] table: `name`, and the fields to change.

    Raises:
        InputError: if there is no such variant or checkpoint, or a field is unknown or invalid.
    """
    fields = dict(model)
    name = fields.pop("name")
    return read_header(name).config.replace(**fields) if starts_from_checkpoint(name) else make_config(name, **fields)


def start_preprocessing(model: Mapping[str, Any], crop_pct: float) -> Preprocessing:
    """How images become the input of a recipe's [model] table; a checkpoint's colors stay normalized as they were."""
    size = start_config(model).image_size
    if not starts_from_checkpoint(model["name"]):
        return Preprocessing(image_size=size, crop_pct=crop_pct)
    known = read_header(model["name"]).preprocessing
    return dataclasses.replace(known, image_size=size, crop_pct=crop_pct)


def start_model(model: Mapping[str, Any], classes: Sequence[str]) -> LipsFormer:
    """The network of a recipe's [model] table for `classes`, with its first weights.

    Fresh ones are drawn from PyTorch's generator. Of a checkpoint all are taken, but for the head where its classes
    are others: that is a fresh one then.

    Raises:
        InputError: as `start_config`, or if the checkpoint's weights do not fit what the table changes.
    """
    config = start_config(model).replace(num_classes=len(classes))
    network = build_model(config)
    name = model["name"]
    if not starts_from_checkpoint(name):
        init_weights(network, config.init)
        return network
    init_weights(network.head, config.init)
    checkpoint = load_checkpoint(name)
    weights = checkpoint.model.state_dict()
    if checkpoint.classes != tuple(classes):
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    own = network.state_dict()
    for key, value in weights.items():
        if key not in own or own[key].shape != value.shape:
            changes = ", ".join(f"model.{field}" for field in model if field != "name")
            raise InputError(f"{name}: its {key} does not fit the changed {changes}; leave those as they are")
    network.load_state_dict(own | weights)
    return network
