"""Model size and cost: parameters and multiply-adds."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from .config import ModelConfig
from .factory import build_model
from .variants import make_config

__all__ = ["ModelSummary", "count_multiply_adds", "summarize"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """Size and cost of a model; `multiply_adds` is for one image through every matrix product and convolution."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int


def summarize(name: str) -> ModelSummary:
    """Parameters and multiply-adds of variant `name`, counted without allocating weights.

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
    # All blocks of a stage cost the same: one per stage is counted, since tracing a deep network takes seconds.
    with torch.device("meta"), torch.no_grad():
        shallow = build_model(config.replace(depths=(1,) * len(config.depths))).eval()
        with FlopCounterMode(display=False) as counter:
            shallow(torch.empty(1, 3, config.image_size, config.image_size))
    flops: int = counter.get_total_flops()
    for stage, depth in enumerate(config.depths):
        block = counter.get_flop_counts()[f"{type(shallow).__name__}.layers.{stage}.blocks.0"]
        flops += (depth - 1) * sum(block.values())
    return flops // 2
