"""Optimizers of a training: AdamW, alone or with Muon, and AdamW2."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lipsformer.model.blocks import LipsFormer
from lipsformer.train.recipe import Recipe

from .adamw2 import AdamW2
from .muon import Muon
from .param_groups import param_groups
from .spectral_cap import SpectralCap

__all__ = ["Optimizers", "build_optimizers"]


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """The optimizers that together update all weights of a model, and the cap that they are held below, if any."""

    members: tuple[torch.optim.Optimizer, ...]
    cap: SpectralCap | None = None

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for optimizer in self.members:
            optimizer.zero_grad()

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate: in each group, `lr` times its `lr_scale`."""
        for optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]

    def step(self) -> None:
        """Updates the weights from their gradients."""
        for optimizer in self.members:
            optimizer.step()
        if self.cap is not None:
            self.cap.hold()

    def state_dict(self) -> dict[str, Tensor]:
        """The state of all parameters as flat tensors, named "<optimizer>.<parameter>.<key>"."""
        return {
            f"{number}.{index}.{key}": tensor
            for number, optimizer in enumerate(self.members)
            for index, moments in optimizer.state_dict()["state"].items()
            for key, tensor in moments.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `state_dict` returned.

        Raises:
            ValueError, KeyError, RuntimeError: if it belongs to another model or optimizer.
        """
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.members]
        for name, tensor in tensors.items():
            number, index, key = name.split(".", 2)
            states[int(number)].setdefault(int(index), {})[key] = tensor
        for optimizer, state in zip(self.members, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def build_optimizers(model: LipsFormer, recipe: Recipe) -> Optimizers:
    """AdamW (Loshchilov and Hutter 2019) for all weights, or Muon (Jordan et al. 2024) for the matrices of the blocks.

    AdamW2 (Qi et al. 2025) is AdamW with a bound of each step of the linear and convolution weights. These decay;
    biases, norms, scales and tables do not. Frozen weights are left out. Muon's updates are scaled to the size of
    AdamW's, so that one learning rate fits both.
    """
    muon = param_groups(model, recipe, muon=True) if recipe.optimizer == "muon" else []
    adamw = param_groups(model, recipe, muon=False if muon else None)
    members: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "adamw2":
        members.append(AdamW2(adamw, lr=recipe.peak_rate, betas=recipe.betas))
    else:
        members.append(torch.optim.AdamW(adamw, lr=recipe.peak_rate, betas=recipe.betas, fused=True))
    if muon:
        members.append(Muon(muon, lr=recipe.peak_rate))
    return Optimizers(tuple(members), SpectralCap(model, recipe.spectral_cap) if recipe.spectral_cap else None)
