"""LipsFormer with timm's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.cswin import LipsFormerCSwin
from lipsformer.model.init_weights import init_weights
from lipsformer.model.swin import LipsFormerSwin
from lipsformer.system.errors import InputError

__all__ = ["TimmLipsFormer", "TimmLipsFormerCSwin", "TimmLipsFormerSwin"]

TABLES = ("relative_position_bias_table", "temperature", "value_scale")  # more than one axis, and no weight decay
JOINS_PREVIOUS = (99999,)  # timm's mark of a parameter group that continues the one before it
AFTER_BLOCKS = (100_000,)  # sorts a downsampling layer after the blocks of its stage


class TimmLipsFormer(LipsFormer):
    """LipsFormer with timm's interface: an unpooled map from `forward_features`, and a head that can be replaced.

    Args:
        config: the configuration of the network.
        num_classes: outputs; 0 for none, which returns the pooled features (B, C).
        drop_rate: dropout of the pooled features in training.
        global_pool: "avg", or "" for the map (B, H, W, C) of the last stage.

    Raises:
        InputError: for another `global_pool`, or a configuration with a flat head.
    """

    output_fmt = "NHWC"
    in_chans = 3

    def __init__(self, config: ModelConfig, *, num_classes: int, drop_rate: float, global_pool: str) -> None:
        if config.pooling != "mean":
            raise InputError(f"pooling={config.pooling!r}: timm pools by the mean; use lipsformer.create_model")
        super().__init__(config)
        init_weights(self, config.init)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = config.channels(config.last_stage)
        self.feature_info = [
            {"num_chs": config.channels(stage), "reduction": config.patch_size << stage, "module": f"layers.{stage}"}
            for stage in range(len(config.depths))
        ]
        self.global_pool = checked_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        if num_classes == 0:
            self.add_module("head", nn.Identity())

    def forward_features(self, image: Tensor, drop_path_noise: Tensor | None = None) -> Tensor:
        """The normalized map (B, H, W, C) of the last stage, of normalized float images (B, 3, S, S)."""
        features: Tensor = self.norm(self.forward_stages(image, drop_path_noise)[-1])
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last stage's map (B, H, W, C); pooled features (B, C) with `pre_logits`."""
        features: Tensor = self.head_drop(x.mean(dim=(1, 2)) if self.global_pool else x)
        return features if pre_logits else self.head(features)

    def forward(self, image: Tensor, drop_path_noise: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of normalized float images (B, 3, S, S)."""
        return self.forward_head(self.forward_features(image, drop_path_noise))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stages `indices` (the last n if an int), alone or after the last computed map (B, H, W, C).

        Args:
            x: normalized float images (B, 3, S, S).
            indices: stages from 0, or from the end if negative; all by default.
            norm: apply the final norm to the last stage's features.
            stop_early: compute no stage after the last that is taken.
            output_fmt: "NCHW" or "NHWC", of the features.
            intermediates_only: return the list alone.

        Raises:
            InputError: for another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise InputError(f"output_fmt={output_fmt!r}: features are 'NCHW' or 'NHWC'")
        taken, last = feature_take_indices(len(self.layers), indices)
        maps = self.forward_stages(x, stages=last + 1 if stop_early else None)
        final = self.norm(maps[-1]) if len(maps) == len(self.config.depths) else maps[-1]
        features = [final if norm and stage == self.config.last_stage else maps[stage] for stage in taken]
        if output_fmt == "NCHW":
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features if intermediates_only else (final, features)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the features of the stages `indices` do not need; returns these from 0."""
        taken: list[int]
        taken, last = feature_take_indices(len(self.layers), indices)
        cut = last < len(self.layers) - 1
        self.layers = self.layers[: last + 1]
        self.layers[last].add_module("downsample", nn.Identity())
        if cut or prune_norm:
            self.add_module("norm", nn.Identity())
        if cut:
            self.num_features = self.head_hidden_size = self.config.channels(last)
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear layer from features to logits, or `nn.Identity` without one."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a newly initialized one of `num_classes` outputs, or by none if 0.

        Raises:
            InputError: for a `global_pool` other than "avg" and "", or an invalid number of classes.
        """
        if global_pool is not None:
            self.global_pool = checked_pool(global_pool)
        head: nn.Module = nn.Identity()
        if num_classes:
            self.config = self.config.replace(num_classes=num_classes)
            head = nn.Linear(self.num_features, num_classes)
            init_weights(head, self.config.init)
        self.num_classes = num_classes
        self.add_module("head", head.to(next(self.parameters())))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning-rate decay, those of `lipsformer train`.

        The embedding, each block (each stage if `coarse`), then norm and head. A downsampling layer belongs to what
        follows it.
        """
        if coarse:
            stages = [
                (r"^layers\.(\d+)\.downsample", AFTER_BLOCKS),
                (r"^layers\.([1-9]\d*)\.blocks", JOINS_PREVIOUS),
                (r"^layers\.(0)\.blocks", None),
            ]
            return {"stem": r"^patch_embed", "blocks": stages}
        blocks = [
            (r"^layers\.(\d+)\.downsample", AFTER_BLOCKS),
            (r"^layers\.([1-9]\d*)\.blocks\.(0)\.", JOINS_PREVIOUS),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.", None),
        ]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one axis that do not decay."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in TABLES}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside each block for the gradient, instead of storing them."""
        self.grad_checkpointing = enable


class TimmLipsFormerSwin(TimmLipsFormer, LipsFormerSwin):
    """The Swin form with timm's interface."""


class TimmLipsFormerCSwin(TimmLipsFormer, LipsFormerCSwin):
    """The CSwin form with timm's interface."""


def checked_pool(global_pool: str) -> str:
    """`global_pool`, if LipsFormer has it.

    Raises:
        InputError: if not; the exported graph and the Lipschitz bound are those of the mean.
    """
    if global_pool not in ("avg", ""):
        raise InputError(
            f"global_pool={global_pool!r}: use 'avg', LipsFormer's mean over all tokens, or '' for the map"
        )
    return global_pool
