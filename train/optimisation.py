"""AdamW's parameter groups, the learning rate of each step, and the averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .recipe import Recipe

__all__ = ["average_weights", "build_optimizer", "decay_groups", "learning_rate"]

Tensors = tuple[Tensor, ...] | list[Tensor]


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: weights of linear layers and convolutions decay; biases, norms, scales and tables do not."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    decayed = [parameter for parameter in model.parameters() if id(parameter) in weights]
    free = [parameter for parameter in model.parameters() if id(parameter) not in weights]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) in one fused pass over all weights."""
    groups = decay_groups(model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from `peak` at step 0 down to 0 at step `total`, without warm-up.

    A function of the step alone: a resumed run has no schedule to restore, and a skipped step does not disturb it.
    """
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / total))


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; `update_parameters(model)` takes in the present ones.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run's average forgets the initial
    weights.
    """

    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        step = get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))  # type: ignore[no-untyped-call]
        step(averaged, current, updates)

    return AveragedModel(model, multi_avg_fn=update)
