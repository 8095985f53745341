"""Parameter groups by weight decay and layer-wise learning-rate decay, and frozen stages."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from lipsformer.model.blocks import LipsFormer
from lipsformer.train.recipe import Recipe

__all__ = ["freeze_stages", "param_groups"]

# As PyTorch has it, with the factor of the learning rate as "lr_scale", and "bounded" where AdamW2 bounds the steps.
Group = dict[str, Any]

BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")


def param_groups(model: LipsFormer, recipe: Recipe, *, muon: bool | None = None) -> list[Group]:
    """The trainable parameters, grouped by weight decay and `lr_scale`; with `muon`, only Muon's or only the others."""
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    last = sum(model.config.depths) + 1
    groups: dict[tuple[bool, int], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (muon is not None and muon != _is_muons(name, parameter, kernels)):
            continue
        decays, layer = id(parameter) in kernels, layer_id(name, model.config.depths)
        group = {
            "params": [],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr_scale": recipe.layer_decay ** (last - layer),
            "bounded": decays,
        }
        groups.setdefault((decays, layer if recipe.layer_decay < 1.0 else 0), group)["params"].append(parameter)
    return list(groups.values())


def layer_id(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a parameter: 0 for the embedding, 1 to L for the blocks, L + 1 for the rest.

    A downsampling layer counts with the block after it.
    """
    if name.startswith("patch_embed."):
        return 0
    if match := BLOCK.match(name):
        return sum(depths[: int(match[1])]) + int(match[2]) + 1
    if match := DOWNSAMPLE.match(name):
        return sum(depths[: int(match[1]) + 1]) + 1
    return sum(depths) + 1


def freeze_stages(model: LipsFormer, stages: int) -> None:
    """Freezes the embedding and the first `stages` stages, with their downsampling layers; 0 freezes nothing."""
    if stages:
        for part in (model.patch_embed, *model.layers[:stages]):
            part.requires_grad_(False)


def _is_muons(name: str, parameter: Tensor, kernels: set[int]) -> bool:
    return BLOCK.match(name) is not None and parameter.ndim == 2 and id(parameter) in kernels
