"""Optimizers and their parameter groups, the learning rate of each step, and the averaged weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lipsformer.model.blocks import LipsFormer
from lipsformer.train.recipe import Recipe

__all__ = ["Optimizers", "average_weights", "build_optimizers", "freeze_stages", "learning_rate"]

Tensors = tuple[Tensor, ...] | list[Tensor]
Group = dict[str, Any]  # as PyTorch has it, with the rate's factor as "lr_scale"

BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """The optimizers that together step all weights of a model."""

    members: tuple[torch.optim.Optimizer, ...]

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate, each group's by its own factor."""
        for optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]

    def step(self) -> None:
        """Changes the weights by their gradients."""
        for optimizer in self.members:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that they remember, by names that say whose it is."""
        return {
            f"{number}.{index}.{key}": tensor
            for number, optimizer in enumerate(self.members)
            for index, moments in optimizer.state_dict()["state"].items()
            for key, tensor in moments.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `state` gave.

        Raises:
            ValueError, KeyError, RuntimeError: if it was another model's or optimizer's.
        """
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.members]
        for name, tensor in tensors.items():
            number, index, key = name.split(".", 2)
            states[int(number)].setdefault(int(index), {})[key] = tensor
        for optimizer, state in zip(self.members, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def build_optimizers(model: LipsFormer, recipe: Recipe) -> Optimizers:
    """AdamW (Loshchilov and Hutter 2019) for all weights, or Muon (Jordan et al. 2024) for the matrices of the blocks.

    Weights of linear layers and convolutions decay; biases, norms, scales and tables do not. Frozen weights are left
    out. Muon's updates are scaled to the size of AdamW's, so that one learning rate fits both.
    """
    muon = [g for g in groups(model, recipe, muon=True) if g["params"]] if recipe.optimizer == "muon" else []
    adamw = [g for g in groups(model, recipe, muon=False if muon else None) if g["params"]]
    members: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adamw, lr=recipe.peak_rate, betas=recipe.betas, fused=True)
    ]
    if muon:
        members.append(torch.optim.Muon(muon, lr=recipe.peak_rate, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(tuple(members))


def groups(model: LipsFormer, recipe: Recipe, *, muon: bool | None = None) -> Iterator[Group]:
    """Parameter groups by weight decay and rate factor; with `muon`, those that are Muon's, or those that are not."""
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    depth = sum(model.config.depths) + 1
    found: dict[tuple[bool, int], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (muon is not None and muon != _is_muons(name, parameter, kernels)):
            continue
        decays, layer = id(parameter) in kernels, layer_of(name, model.config.depths)
        group = {
            "params": [],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr_scale": recipe.layer_decay ** (depth - layer),
        }
        found.setdefault((decays, layer if recipe.layer_decay < 1.0 else 0), group)["params"].append(parameter)
    return iter(found.values())


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """Where a parameter lies: 0 the embedding, 1 to L the blocks, a merging with the block after it, L + 1 the rest."""
    if name.startswith("patch_embed."):
        return 0
    if match := BLOCK.match(name):
        return sum(depths[: int(match[1])]) + int(match[2]) + 1
    if match := DOWNSAMPLE.match(name):
        return sum(depths[: int(match[1]) + 1]) + 1
    return sum(depths) + 1


def freeze_stages(model: LipsFormer, stages: int) -> None:
    """Excludes the embedding and the first `stages` stages, with what merges them, from training; 0 excludes none."""
    if stages:
        for part in (model.patch_embed, *model.layers[:stages]):
            part.requires_grad_(False)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from `peak` at step 0 down to 0 at step `total`, without warm-up.

    A function of the step alone: a resumed run has no schedule to restore, and a skipped step does not disturb it.
    """
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / total))


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights; `update_parameters(model)` takes in the present ones.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run's average forgets the initial
    weights. Every process of a training keeps its own: as their weights are the same, so are the averages.
    """

    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        count = int(updates)  # a tensor on the CPU: no wait for the GPU
        step = get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))  # type: ignore[no-untyped-call]
        step(averaged, current, updates)

    return AveragedModel(model, multi_avg_fn=update)


def _is_muons(name: str, parameter: Tensor, kernels: set[int]) -> bool:
    return BLOCK.match(name) is not None and parameter.ndim == 2 and id(parameter) in kernels
