"""timm's registry entries of the variants: a function to build each, and its `pretrained_cfg`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from lipsformer.checkpoints.checkpoint import read_header
from lipsformer.checkpoints.official_weights import OFFICIAL
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import STAGES, ModelConfig, SwinConfig
from lipsformer.model.variants import ALIASES, VARIANTS, make_config
from lipsformer.system.errors import InputError

from .model import TimmLipsFormer, TimmLipsFormerCSwin, TimmLipsFormerSwin

__all__ = ["default_cfgs"]

# timm pools by itself: a flat head has no place there.
NAMES = tuple(name for name in (*VARIANTS, *ALIASES) if make_config(name).pooling == "mean")
TIMM_NAMES = {"image_size": "img_size", "drop_path": "drop_path_rate"}


def build_network(
    name: str,
    *,
    num_classes: int,
    in_chans: int,
    img_size: int | Sequence[int],
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> TimmLipsFormer:
    """Builds variant `name` from timm's arguments; `settings` are fields of its configuration, such as `window_size`.

    Raises:
        InputError: for an unknown setting, an invalid value, channels other than RGB, or images that are not square.
    """
    if in_chans != TimmLipsFormer.in_chans:
        raise InputError(f"in_chans={in_chans}: LipsFormer takes RGB images; convert them and leave in_chans at 3")
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width:
        raise InputError(f"img_size={height, width}: LipsFormer takes square images; use img_size={min(height, width)}")
    for ours in settings.keys() & TIMM_NAMES.keys():
        raise InputError(f"{ours}: here the setting has timm's name, {TIMM_NAMES[ours]}")
    if num_classes:
        settings["num_classes"] = num_classes
    config = make_config(name, image_size=height, drop_path=drop_path_rate, **settings)
    form = TimmLipsFormerSwin if isinstance(config, SwinConfig) else TimmLipsFormerCSwin
    model = form(config, num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
    return model.to(device=device, dtype=dtype)


def create(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """What `timm.create_model` calls for variant `name`; official weights are fetched and converted by LipsFormer."""
    overlay = dict(pretrained_cfg_overlay or {})
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
    official = OFFICIAL.get(weights := f"{cfg.architecture}.{cfg.tag}")
    if pretrained and official is not None and cfg.url == official.url and not cfg.file:
        overlay["file"] = str(resolve_model(weights))
    model: nn.Module = build_model_with_cfg(
        functools.partial(build_network, name),
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": tuple(range(STAGES)), "feature_cls": "getter"},
        **kwargs,
    )
    return model


def data_config(config: ModelConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a model, without weights."""
    return {
        "num_classes": config.num_classes,
        "input_size": (3, config.image_size, config.image_size),
        "fixed_input_size": True,
        "pool_size": (config.resolution(config.last_stage),) * 2,
        "crop_pct": preprocessing.crop_pct,
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


def weights_config(model: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of an included model."""
    header = read_header(model)
    cfg = data_config(header.config, header.preprocessing)
    return {**cfg, "file": str(resolve_model(model)), "label_names": header.classes}


def all_cfgs() -> dict[str, dict[str, Any]]:
    """`pretrained_cfg` by name and tag."""
    cfgs = {}
    for name in NAMES:
        config = make_config(name)
        cfgs[name] = data_config(config, Preprocessing(image_size=config.image_size))
    for name, weights in OFFICIAL.items():
        cfgs[name] = {**cfgs.pop(weights.variant), "url": weights.url}
    for name in ("lipsformer_cswin_nano", "lipsformer_nano"):
        cfgs.pop(name)
        cfgs[f"{name}.cifar10"] = weights_config("lipsformer_cifar10")
    return cfgs


def entrypoint(name: str) -> Callable[..., nn.Module]:
    """The function of variant `name` that timm's registry holds; the registry goes by its name and module."""

    def variant(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained, **kwargs)

    variant.__name__ = variant.__qualname__ = name
    return variant


default_cfgs = generate_default_cfgs(all_cfgs())
globals().update({name: register_model(entrypoint(name)) for name in NAMES})
