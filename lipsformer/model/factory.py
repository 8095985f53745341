"""Building models by name, and what each variant costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .blocks import LipsFormer
from .config import CSwinConfig, ModelConfig, SwinConfig
from .cswin import LipsFormerCSwin
from .init_weights import init_weights
from .swin import LipsFormerSwin
from .variants import make_config

__all__ = ["ModelSummary", "build_model", "count_multiply_adds", "create_model", "summarize"]


def build_model(config: ModelConfig) -> LipsFormer:
    """The network of `config`, with weights still to be initialized or loaded.

    Raises:
        TypeError: if `config` belongs to no form.
    """
    if isinstance(config, SwinConfig):
        return LipsFormerSwin(config)
    if isinstance(config, CSwinConfig):
        return LipsFormerCSwin(config)
    raise TypeError(f"no network for {type(config).__name__}")


def create_model(name: str, num_classes: int = 1000, image_size: int | None = None, **overrides: Any) -> LipsFormer:
    """Builds variant `name` and initializes it as its configuration says.

    The model maps normalized float images (B, 3, image_size, image_size) to logits (B, num_classes);
    `forward_features` gives the pooled features. `overrides` are fields of its configuration, such as `window_size`,
    `embed_dim`, `depths`, `num_heads`, `drop_path`, `norm`, `attention`.

    Raises:
        InputError: for an unknown name or override, or an image size that cannot be tiled.
    """
    if image_size is not None:
        overrides["image_size"] = image_size
    model = build_model(make_config(name, num_classes=num_classes, **overrides))
    init_weights(model, model.config.init)
    return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """Size and cost of a model: `multiply_adds` counts one image through every matrix product and convolution."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int


def summarize(name: str) -> ModelSummary:
    """Counts parameters and multiply-adds of variant `name`, without allocating weights.

    Raises:
        InputError: for an unknown name.
    """
    config = make_config(name)
    with torch.device("meta"):
        model = build_model(config)
    return ModelSummary(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=count_multiply_adds(config),
        image_size=config.image_size,
    )


def count_multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of one image through every matrix product and convolution of the network of `config`."""
    # The blocks of a stage cost the same: one of each is counted, as deep networks take seconds.
    with torch.device("meta"), torch.no_grad():
        shallow = build_model(config.replace(depths=(1,) * len(config.depths))).eval()
        with FlopCounterMode(display=False) as counter:
            shallow(torch.empty(1, 3, config.image_size, config.image_size))
    flops: int = counter.get_total_flops()
    for stage, depth in enumerate(config.depths):
        block = counter.get_flop_counts()[f"{type(shallow).__name__}.layers.{stage}.blocks.0"]
        flops += (depth - 1) * sum(block.values())
    return flops // 2
