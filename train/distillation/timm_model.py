"""A teacher from timm (PyTorch Image Models), if it is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

from .settings import Distillation, TeacherPreprocessing
from .view import InputFormat

__all__ = ["TIMM", "load_timm"]

TIMM = "timm:"  # before a model's name
FILTERS = ("bilinear", "bicubic")


class PooledFeatures(nn.Module):
    """The pooled features (B, C) of a timm model, in front of its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return features


def load_timm(settings: Distillation, classes: int | None) -> tuple[nn.Module, InputFormat]:
    """A pretrained timm model in eval mode, logits or features as `settings` say, and the images it takes.

    Args:
        settings: with the teacher "timm:NAME".
        classes: number of its classes, to load the `weights` of a fine-tuned one.

    Raises:
        InputError: if timm is not installed, has no such model, or its weights cannot be loaded.
    """
    name, weights = settings.teacher.removeprefix(TIMM), settings.weights
    require("timm", what=f"--teacher {settings.teacher}")
    try:
        timm, data = importlib.import_module("timm"), importlib.import_module("timm.data")
    except Exception as error:  # noqa: BLE001 - a torchvision that does not fit PyTorch fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--teacher {settings.teacher}: timm cannot be imported ({reason}); pip install timm"
        ) from None
    options: dict[str, Any] = {}
    if weights is not None:
        if not weights.endswith(".safetensors"):
            raise InputError(f"recipe: distillation: weights={weights}: a .safetensors file is needed")
        if not Path(weights).is_file():
            raise InputError(f"recipe: distillation: weights={weights}: no such file")
        options["pretrained_cfg_overlay"] = {"file": weights} | ({"num_classes": classes} if classes else {})
        options["num_classes"] = classes
    try:
        model = timm.create_model(name, pretrained=True, **options).eval().requires_grad_(False)
    except Exception as error:  # noqa: BLE001 - an unknown name, no network, a file that does not fit
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        source = weights or "timm's pretrained weights (a local file can be given as distillation.weights)"
        raise InputError(f"--teacher {settings.teacher}: {source}: cannot be loaded ({reason})") from None
    found = data.resolve_model_data_config(model)
    return PooledFeatures(model) if settings.kind == "features" else model, _input(found, settings)


def _input(config: dict[str, Any], settings: Distillation) -> InputFormat:
    """The images that a timm model takes, by timm's data configuration and what the recipe changes of it."""
    table = settings.preprocessing or TeacherPreprocessing()
    own = config["interpolation"] if config["interpolation"] in FILTERS else "bicubic"
    return InputFormat(
        image_size=table.image_size or config["input_size"][-1],
        mean=table.mean or tuple(config["mean"]),
        std=table.std or tuple(config["std"]),
        low=table.input_range[0],
        high=table.input_range[1],
        interpolation=table.interpolation or own,
    )
