"""The student of a distillation: its network, and what it adds to be compared with the teacher."""

from __future__ import annotations

from torch import Tensor, nn

from lipsformer.model.blocks import LipsFormer
from lipsformer.train.optim.optimizers import Optimizers

__all__ = ["Student", "train_projection"]


class Student(nn.Module):
    """Maps images to the model's logits (B, K), and to what is compared with the teacher.

    That is the logits, or with `features` a linear projection of the pooled features to as many (B, features). The
    projection is trained with the model and kept in the training state, not in the checkpoint.
    """

    def __init__(self, model: LipsFormer, features: int | None) -> None:
        super().__init__()
        self.model = model
        self.projection = None if features is None else nn.Linear(model.head.in_features, features)

    def forward(self, images: Tensor, drop_path_noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pooled = self.model.forward_features(images, drop_path_noise)
        logits: Tensor = self.model.head(pooled)
        return logits, logits if self.projection is None else self.projection(pooled)


def train_projection(projection: nn.Linear, optimizers: Optimizers, weight_decay: float) -> None:
    """Adds a student's projection to AdamW's parameters, at the full learning rate."""
    for parameter, decay in ((projection.weight, weight_decay), (projection.bias, 0.0)):
        optimizers.members[0].add_param_group({"params": [parameter], "weight_decay": decay, "lr_scale": 1.0})
