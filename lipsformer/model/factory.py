"""Networks from configurations, and initialized models by name."""

from __future__ import annotations

from typing import Any

from .blocks import LipsFormer
from .config import CSwinConfig, ModelConfig, SwinConfig
from .cswin import LipsFormerCSwin
from .init_weights import init_weights
from .swin import LipsFormerSwin
from .variants import make_config

__all__ = ["build_model", "create_model"]


def build_model(config: ModelConfig) -> LipsFormer:
    """Builds the network of `config`; its weights are still to be initialized or loaded.

    Raises:
        TypeError: if `config` is of neither form.
    """
    if isinstance(config, SwinConfig):
        return LipsFormerSwin(config)
    if isinstance(config, CSwinConfig):
        return LipsFormerCSwin(config)
    raise TypeError(f"no network for {type(config).__name__}")


def create_model(name: str, num_classes: int = 1000, image_size: int | None = None, **overrides: Any) -> LipsFormer:
    """Builds variant `name` and initializes its weights by the scheme `init` of its configuration.

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
