"""Configurations with every kind of window, small enough for float64, and models whose every parameter counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import CSwinConfig, ModelConfig, SwinConfig
from lipsformer.model.factory import build_model
from lipsformer.model.variants import PLAIN
from tests.support.models.dense_forward import dense_forward

__all__ = [
    "CERTIFIED",
    "CSWIN",
    "EQUAL",
    "PLAIN_CSWIN",
    "PLAIN_SWIN",
    "SEEN",
    "SWIN",
    "disagreement",
    "random_images",
    "scrambled",
    "small_images",
]

EQUAL = 1e-9  # relative error below which two ways of computing in float64 agree
SEEN = 1000 * EQUAL  # and above which a mistake stands out

# Maps of 16, 8, 4 and 2 tokens a side.
COMMON: dict[str, Any] = {"image_size": 64, "num_classes": 5, "embed_dim": 8, "depths": (1, 2, 2, 1)}
SWIN = SwinConfig(**COMMON, num_heads=(1, 2, 2, 4), window_size=4)
CSWIN = CSwinConfig(**COMMON, num_heads=(2, 2, 4, 4), split_sizes=(1, 2, 2, 7))
# Two stages, and every choice that keeps the bound at 1 under a spectral cap.
CERTIFIED = SwinConfig(
    image_size=32, num_classes=5, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, value_norm=True,
    epsilon=1.0, temperature=0.25, learned_scales=True, residual="convex", activation="maxmin", pooling="flat",
    init="orthogonal", conv_branches=2, conv_kernel=3,
)  # fmt: skip
PLAIN_SWIN = SWIN.replace(shifted_windows=True, **PLAIN)
PLAIN_CSWIN = CSWIN.replace(**PLAIN)


def scrambled(config: ModelConfig) -> LipsFormer:
    """A model in float64 with random parameters: biases, scales and tables begin as constants, which hide a mix-up."""
    torch.manual_seed(0)
    model = build_model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def random_images(config: ModelConfig, count: int = 2) -> torch.Tensor:
    """(count, 3, S, S) in float64, always the same."""
    shape = (count, 3, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def disagreement(model: LipsFormer, weights: Mapping[str, torch.Tensor] | None = None) -> float:
    """The largest relative error of an image's features or logits, against the formulas written out a second time.

    The formulas get the model's own weights, or `weights`.
    """
    image = random_images(model.config)
    wanted = dense_forward(weights or model.state_dict(), image, model.config.to_dict())
    found = model.forward_features(image), model(image)
    errors = [(f - w).norm(dim=1) / w.norm(dim=1) for f, w in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def small_images(name: str) -> dict[str, Any]:
    """Settings that make variant `name` affordable: stages of 16, 8, 4 and 2 tokens a side."""
    if name.endswith("nano"):
        return {}
    return {"image_size": 64, **({"split_sizes": (1, 2, 2, 7)} if "cswin" in name else {"window_size": 2})}
