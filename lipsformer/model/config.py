"""Model configurations: validated data that defines a network completely.

Both forms of LipsFormer (ICLR 2023, arXiv 2304.09856) share `ModelConfig`; each adds how it cuts maps into windows.
Every component of the paper is a choice. An ablation, or the plain network that LipsFormer started from, is another
configuration of the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from lipsformer.system.errors import InputError, check_fields, suggest
from lipsformer.system.validation import one_line_errors

__all__ = ["ARCHITECTURES", "CSwinConfig", "ModelConfig", "SwinConfig", "config_from_dict"]

STAGES = 4  # at most; each but the first is entered by halving height and width
IMAGE_SIZES = range(32, 385)
# The square of the 1e-12 that torch's `normalize` guards against: next to a squared length it is lost to rounding.
OFFICIAL_EPSILON = 1e-24

# What networks were whose files lack these fields.
ADDED_LATER: dict[str, Any] = {
    "activation": "gelu",
    "pooling": "mean",
    "conv_kernel": 7,
    "shift_conv": False,
    "initial_shares": (0.5, 0.5, 0.5),
    "learned_shares": True,
}

# Wider than any network needs, and narrow enough that one can be built and computes in float32.
Pixels = Annotated[int, Field(ge=1, le=384)]
Channels = Annotated[int, Field(ge=2, le=4096)]
Branches = Annotated[int, Field(ge=0, le=2)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
Epsilon = Annotated[float, Field(ge=1e-30, le=1e6)]
StartingShare = Annotated[float, Field(ge=1e-6, le=1 - 1e-6)]
FROM_LIST = BeforeValidator(
    lambda value: tuple(value) if isinstance(value, list) else value
)  # as JSON and TOML have it
PerStage = Annotated[  # blocks, heads, tokens
    tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(min_length=1, max_length=STAGES), FROM_LIST
]
Shares = Annotated[tuple[StartingShare, StartingShare, StartingShare], FROM_LIST]

# No text or booleans for numbers; a whole number for a float becomes a float.
STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The settings that both forms share.

    `num_heads` and `depths` have one entry per stage, of which there are one to four. Stage i works on
    `embed_dim * 2**i` channels and on a square of `image_size / patch_size / 2**i` tokens. `drop_path` is the rate of
    stochastic depth of the last block; it grows linearly from 0 at the first.

    The components:

    * `norm`: "center" (CenterNorm, section 4.1.1) or "layer" (LayerNorm). `norm_position`: after each residual sum
      ("post", LipsFormer) or in front of each branch ("pre", Swin and CSwin).
    * `attention`: "cosine" (SCSA, section 4.1.2), nu * softmax(tau * cos(q, k)) v, or "dot", softmax(q k / sqrt(d)) v.
      Cosine attention has the settings `temperature` (tau), `value_scale` (nu), `learned_scales` (tau and nu are one
      parameter per head, with these initial values), `value_norm` (v is normalized too, which the paper's Lipschitz
      bound needs) and `epsilon` (added to the squared length inside the root of each normalization).
    * `residual`: "weighted" (alpha per channel, from 1 / number of blocks, section 4.1.3), "plain", or "convex",
      (1 - alpha) x + alpha f(x) with one alpha in 0..1 per branch: no steeper than the steeper of x and f. Training
      starts at the alphas `initial_shares`, of convolution, attention and MLP, and stays there without
      `learned_shares`.
    * `activation`: "gelu" or "maxmin" (Anil, Lucas and Grosse 2019), which sorts pairs of channels and shortens no
      gradient.
    * `pooling`: "mean" over the last map, or "flat": the head reads every token.
    * `init`: "spectral" (section 4.1.4), "xavier" (the same without the division), "trunc_normal" (Swin and CSwin) or
      "orthogonal" (Saxe, McClelland and Ganguli 2014).
    * `conv_branches`: depthwise residual branches in front of each attention, 0 to 2, with kernels of `conv_kernel`.
      With `shift_conv` nothing is learned there: each kernel moves its channel by up to half its size (Wu et al., CVPR
      2018).

    Raises:
        InputError: if a field is out of range or the image cannot be tiled; the message suggests values that work.
    """

    image_size: Pixels = 224
    patch_size: Pixels = 4
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    embed_dim: Channels
    depths: PerStage
    num_heads: PerStage
    mlp_ratio: Annotated[float, Field(ge=1e-3, le=64.0)] = 4.0
    drop_path: Annotated[float, Field(ge=0.0, le=0.99)] = 0.0
    norm: Literal["center", "layer"] = "center"
    norm_position: Literal["post", "pre"] = "post"
    attention: Literal["cosine", "dot"] = "cosine"
    temperature: Scale = 10.0
    value_scale: Scale = 1.0
    learned_scales: bool = False
    value_norm: bool
    epsilon: Epsilon
    residual: Literal["weighted", "plain", "convex"] = "weighted"
    activation: Literal["gelu", "maxmin"] = "gelu"
    pooling: Literal["mean", "flat"] = "mean"
    init: Literal["spectral", "xavier", "trunc_normal", "orthogonal"] = "spectral"
    conv_branches: Branches
    conv_kernel: Literal[3, 5, 7] = 7
    shift_conv: bool = False
    initial_shares: Shares = (0.5, 0.5, 0.5)
    learned_shares: bool = True

    architecture: ClassVar[str]

    def __post_init__(self) -> None:
        for name, entries in self._per_stage().items():
            if len(entries) != len(self.depths):
                raise InputError(
                    f"{name}={list(entries)} and depths={list(self.depths)}: one entry per stage is needed in both"
                )
        for stage, heads in enumerate(self.num_heads):
            if self.channels(stage) % heads:
                raise InputError(
                    f"num_heads={list(self.num_heads)}: {heads} does not divide {self.channels(stage)} channels"
                )
        if self.hidden(0) < 1:
            raise InputError(f"mlp_ratio={self.mlp_ratio!r} gives the MLP of {self.embed_dim} channels no hidden ones")
        if self.activation == "maxmin" and (self.embed_dim % 2 or self.hidden(0) % 2):
            raise InputError(
                f"activation='maxmin' pairs channels: embed_dim={self.embed_dim} and its MLP's {self.hidden(0)} hidden "
                "ones must be even"
            )
        if self.attention == "dot" and (self.value_norm or self.learned_scales):
            raise InputError("value_norm and learned_scales belong to attention='cosine'; with 'dot' set both to false")

    @property
    def last_stage(self) -> int:
        """The number of the last stage, from 0."""
        return len(self.depths) - 1

    def channels(self, stage: int) -> int:
        """Channels of `stage`, from 0."""
        return self.embed_dim << stage

    def hidden(self, stage: int) -> int:
        """Hidden channels of the MLPs of `stage`."""
        return int(self.channels(stage) * self.mlp_ratio)

    @property
    def features(self) -> int:
        """Numbers that the head reads: the channels of the last stage, of each token with a flat head."""
        tokens = self.resolution(self.last_stage) ** 2 if self.pooling == "flat" else 1
        return tokens * self.channels(self.last_stage)

    def resolution(self, stage: int) -> int:
        """Tokens along one side of the feature map of `stage`."""
        return self.image_size // self.patch_size >> stage

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`; unknown names are an `InputError` that suggests the nearest."""
        known = setting_names(type(self))
        for name in changes:
            if name not in known:
                raise InputError(f"unknown model setting '{name}': {suggest(name, known)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the architecture's name included; `config_from_dict` reads it back."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)}

    def _per_stage(self) -> dict[str, tuple[int, ...]]:
        return {"num_heads": self.num_heads}

    def _sides(self, image_size: int) -> list[int] | None:
        """The sides of the stages' maps, or nothing if an image of `image_size` does not halve evenly."""
        grid, rest = divmod(image_size, self.patch_size)
        if image_size not in IMAGE_SIZES or rest or grid % 2**self.last_stage:
            return None
        return [grid >> stage for stage in range(len(self.depths))]


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwinConfig(ModelConfig):
    """The Swin form: square windows, a bias per relative position, non-overlapping patches and merges.

    `window_size` is the side of the windows in tokens; a smaller map is one window. With `shifted_windows` every other
    block moves the windows by half their side, as Swin does; LipsFormer does not.
    """

    embed_dim: Channels = 96
    depths: PerStage = (2, 2, 6, 2)
    num_heads: PerStage = (3, 6, 12, 24)
    window_size: Pixels = 7
    shifted_windows: bool = False
    value_norm: bool = False
    epsilon: Epsilon = OFFICIAL_EPSILON
    conv_branches: Branches = 2

    architecture: ClassVar[str] = "lipsformer_swin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._tiles(self.image_size, self.window_size):
            sizes = nearest(self.image_size, (s for s in IMAGE_SIZES if self._tiles(s, self.window_size)))
            windows = nearest(self.window_size, (w for w in range(2, 33) if self._tiles(self.image_size, w)))
            raise InputError(
                f"image_size={self.image_size} cannot be tiled with patch_size={self.patch_size} and "
                f"window_size={self.window_size}; {ways(image_size=sizes, window_size=windows)}"
            )

    def window(self, stage: int) -> int:
        """Side of the attention windows of `stage`: `window_size`, or the whole map where that is smaller."""
        return min(self.window_size, self.resolution(stage))

    def shift(self, stage: int, block: int) -> int:
        """Tokens by which block `block` of `stage` moves its windows."""
        moved = self.shifted_windows and block % 2 == 1 and self.window_size < self.resolution(stage)
        return self.window_size // 2 if moved else 0

    def _tiles(self, image_size: int, window_size: int) -> bool:
        sides = self._sides(image_size)
        return sides is not None and all(side <= window_size or side % window_size == 0 for side in sides)


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class CSwinConfig(ModelConfig):
    """The CSwin form: half of the heads attend in rows, half in columns; overlapping patches and merges; LePE.

    `split_sizes` are the widths in tokens of each stage's rows and columns. In the last stage, and where the width
    reaches that of the map, all heads attend everywhere.
    """

    embed_dim: Channels = 64
    depths: PerStage = (1, 2, 21, 1)
    num_heads: PerStage = (2, 4, 8, 16)
    split_sizes: PerStage = (1, 2, 7, 7)
    value_norm: bool = True
    epsilon: Epsilon = 1e-6
    conv_branches: Branches = 1

    architecture: ClassVar[str] = "lipsformer_cswin"

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage, heads in enumerate(self.num_heads):
            if heads % 2 and not self.attends_everywhere(stage):
                raise InputError(f"num_heads={list(self.num_heads)}: rows and columns share them, so {heads} is odd")
        if not self._tiles(self.image_size):
            sizes = nearest(self.image_size, (s for s in IMAGE_SIZES if self._tiles(s)))
            raise InputError(
                f"image_size={self.image_size} cannot be tiled with patch_size={self.patch_size} and "
                f"split_sizes={list(self.split_sizes)}; {ways(image_size=sizes)}"
            )

    def _per_stage(self) -> dict[str, tuple[int, ...]]:
        return {**super()._per_stage(), "split_sizes": self.split_sizes}

    def attends_everywhere(self, stage: int) -> bool:
        """Whether the windows of `stage` are the whole map."""
        return stage == self.last_stage or self.split_sizes[stage] >= self.resolution(stage)

    def _tiles(self, image_size: int) -> bool:
        sides = self._sides(image_size)
        return sides is not None and all(
            side <= split or side % split == 0 for side, split in zip(sides[:-1], self.split_sizes, strict=False)
        )


def setting_names(config: type[ModelConfig]) -> list[str]:
    """Names of the fields of a configuration class."""
    return [field.name for field in dataclasses.fields(config)]


def nearest(value: int, candidates: Iterable[int]) -> list[int]:
    """The two of `candidates` nearest to `value`, in ascending order."""
    return sorted(sorted(candidates, key=lambda candidate: abs(candidate - value))[:2])


def ways(**fitting: list[int]) -> str:
    """The end of a message: which values of which settings can be used instead."""
    texts = [f"{name} {' or '.join(map(str, values))}" for name, values in fitting.items() if values]
    return f"use {', or keep the rest and use '.join(texts)}" if texts else "another patch_size is needed"


ARCHITECTURES: dict[str, type[SwinConfig] | type[CSwinConfig]] = {
    config.architecture: config for config in (SwinConfig, CSwinConfig)
}


def config_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """The configuration that `to_dict` wrote.

    Raises:
        InputError: if the architecture is unknown, or a field is unknown, missing or invalid.
    """
    fields = ADDED_LATER | dict(data)
    architecture = fields.pop("architecture", None)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture {architecture!r} is not known to this version; known: {', '.join(ARCHITECTURES)}"
        )
    config = ARCHITECTURES[architecture]
    check_fields(fields, setting_names(config), "model setting")
    return config(**fields)
