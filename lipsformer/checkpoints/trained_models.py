"""The trained models that have a name, with their size and accuracy."""

from __future__ import annotations

import dataclasses

import torch

from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.variants import VARIANTS, make_config

from .checkpoint import read_header
from .official_weights import OFFICIAL, official_checkpoint
from .pretrained import PRETRAINED

__all__ = ["TrainedModel", "trained_models"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model that has a name.

    `top1` is its accuracy on `dataset`, a fraction; it is from its authors if `published`, else measured by us. `local`
    says whether it can be used without a download.
    """

    name: str
    variant: str
    parameters: int
    classes: int
    image_size: int
    dataset: str
    top1: float
    published: bool
    local: bool


def trained_models() -> list[TrainedModel]:
    """The models of the package, and the official ones."""
    found = []
    for name, path in PRETRAINED.items():
        header = read_header(path)
        usual = header.config.replace(num_classes=1000)
        variant = next((known for known, config in VARIANTS.items() if config == usual), "")
        about = _size(header.config)
        dataset, top1 = str(header.metrics["dataset"]), float(header.metrics["top1"])
        found.append(
            TrainedModel(name=name, variant=variant, dataset=dataset, top1=top1, published=False, local=True, **about)
        )
    for name, weights in OFFICIAL.items():
        about, local = _size(make_config(weights.variant)), official_checkpoint(name) is not None
        found.append(
            TrainedModel(
                name=name,
                variant=weights.variant,
                dataset=weights.dataset,
                top1=weights.top1,
                published=True,
                local=local,
                **about,
            )
        )
    return found


def _size(config: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(config).parameters())
    return {"parameters": parameters, "classes": config.num_classes, "image_size": config.image_size}
