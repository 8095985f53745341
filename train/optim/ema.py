"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["average_weights"]

Tensors = tuple[Tensor, ...] | list[Tensor]


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An EMA of the weights; `update_parameters(model)` adds the current ones.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run's average forgets the initial
    weights. Each process of a training keeps its own average: since their weights are equal, so are the averages.
    """

    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        count = int(updates)  # a tensor on the CPU: no GPU synchronization
        step = get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))  # type: ignore[no-untyped-call]
        step(averaged, current, updates)

    return AveragedModel(model, multi_avg_fn=update)
