"""Starting point of a training: a variant with fresh weights, or the weights of a checkpoint (fine-tuning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.checkpoints.official_weights import OFFICIAL
from lipsformer.checkpoints.pretrained import PRETRAINED, is_trained
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.model.variants import ALIASES, VARIANTS, make_config
from lipsformer.system.errors import InputError, suggest

__all__ = ["StartingPoint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """What a recipe's [model] table says, resolved: everything that a training needs of a variant or a checkpoint.

    Attributes:
        name: of the variant or checkpoint, for messages.
        config: with the table's changes. Its number of classes is still that of the variant or checkpoint.
        preprocessing: for the config's image size, with the checkpoint's colors and filter.
        weights: the checkpoint's state dict, or None for fresh weights.
        classes: the checkpoint's class names; none for a variant.
        changed: the fields of the config that the table changes.
    """

    name: str
    config: ModelConfig
    preprocessing: Preprocessing
    weights: Mapping[str, Tensor] | None = None
    classes: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @classmethod
    def resolve(cls, model: Mapping[str, Any]) -> Self:
        """Resolves a [model] table: `name`, and the fields to change. Opens a checkpoint once.

        Raises:
            InputError: if there is no such variant or checkpoint, or a field is unknown or invalid.
        """
        changes = dict(model)
        name = changes.pop("name")
        if not is_trained(name):
            known = [*PRETRAINED, *OFFICIAL, *ALIASES, *VARIANTS]
            if name not in known:
                raise InputError(f"unknown model '{name}': {suggest(name, known)}")
            config = make_config(name, **changes)
            return cls(name=name, config=config, preprocessing=Preprocessing(image_size=config.image_size))
        checkpoint = load_checkpoint(name)
        config = checkpoint.config.replace(**changes)
        return cls(
            name=name,
            config=config,
            preprocessing=dataclasses.replace(checkpoint.preprocessing, image_size=config.image_size),
            weights=checkpoint.model.state_dict(),
            classes=checkpoint.classes,
            changed=tuple(changes),
        )

    def build_model(self, classes: Sequence[str]) -> LipsFormer:
        """The network for `classes`, with its initial weights.

        PyTorch's generator draws fresh weights. A checkpoint gives all of its weights, except that the head is fresh
        if its classes differ.

        Raises:
            InputError: if the checkpoint's weights do not fit what the table changes.
        """
        config = self.config.replace(num_classes=len(classes))
        network = build_model(config)
        if self.weights is None:
            init_weights(network, config.init)
            return network
        init_weights(network.head, config.init)
        own = network.state_dict()
        for key, value in self.weights.items():
            if key.startswith("head.") and self.classes != tuple(classes):
                continue
            if key not in own or own[key].shape != value.shape:
                changes = ", ".join(f"model.{field}" for field in self.changed)
                raise InputError(f"{self.name}: its {key} does not fit the changed {changes}; leave those as they are")
            own[key] = value
        network.load_state_dict(own)
        return network
