"""Model configurations: validated data that says everything needed to build a network.

Both forms of LipsFormer (ICLR 2023, arXiv 2304.09856) share `ModelConfig`; each adds how it cuts maps into windows.
Every component of the paper is a choice, so an ablation, or the plain network that LipsFormer started from, is a
configuration of the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from lipsformer.system.errors import InputError, check_fields, suggest

__all__ = ["ARCHITECTURES", "CSwinConfig", "ModelConfig", "SwinConfig", "config_from_dict"]

MERGES = 3  # four stages, each but the first entered by halving height and width
STAGES = MERGES + 1
IMAGE_SIZES = range(32, 385)
CHOICES = {
    "norm": ("center", "layer"),
    "norm_position": ("post", "pre"),
    "attention": ("cosine", "dot"),
    "residual": ("weighted", "plain"),
    "init": ("spectral", "xavier", "trunc_normal"),
}
# Wider than any network needs, and narrow enough that one can be built and computes in float32.
WHOLE = {
    "image_size": (1, 384),
    "patch_size": (1, 384),
    "num_classes": (1, 1_000_000),
    "embed_dim": (2, 4096),
    "conv_branches": (0, 2),
    "window_size": (1, 384),
}
NUMBERS = {
    "mlp_ratio": (1e-3, 64.0),
    "drop_path": (0.0, 0.99),
    "temperature": (1e-6, 1e6),
    "value_scale": (1e-6, 1e6),
    "epsilon": (1e-30, 1.0),
}
MOST_PER_STAGE = 1000  # blocks, heads, tokens
# The square of the 1e-12 that torch's `normalize` guards against: next to a squared length it is lost to rounding.
OFFICIAL_EPSILON = 1e-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What both forms have in common.

    `num_heads` and `depths` have one entry per stage; stage i works on `embed_dim * 2**i` channels and on a square of
    `image_size / patch_size / 2**i` tokens. `drop_path` is the stochastic depth rate of the last block; it grows
    linearly from 0 at the first.

    The components:

    * `norm`: "center" (CenterNorm, section 4.1.1) or "layer" (LayerNorm). `norm_position`: after each residual sum
      ("post", LipsFormer) or in front of each branch ("pre", Swin and CSwin).
    * `attention`: "cosine" (SCSA, section 4.1.2), nu * softmax(tau * cos(q, k)) v, or "dot", softmax(q k / sqrt(d)) v.
      Cosine attention has the settings `temperature` (tau), `value_scale` (nu), `learned_scales` (tau and nu are a
      parameter per head, and these their initial values), `value_norm` (v is normalized too, which the paper's
      Lipschitz bound needs) and `epsilon` (added to the squared length inside the root of each normalization).
    * `residual`: "weighted" (alpha per channel, from 1 / number of blocks, section 4.1.3) or "plain".
    * `init`: "spectral" (section 4.1.4), "xavier" (the same without the division) or "trunc_normal" (Swin and CSwin).
    * `conv_branches`: depthwise 7x7 residual branches in front of each attention, 0 to 2.

    Raises:
        InputError: if a field is out of range or the image cannot be tiled; the message names what can be used.
    """

    image_size: int = 224
    patch_size: int = 4
    num_classes: int = 1000
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    norm: str = "center"
    norm_position: str = "post"
    attention: str = "cosine"
    temperature: float = 10.0
    value_scale: float = 1.0
    learned_scales: bool = False
    value_norm: bool
    epsilon: float
    residual: str = "weighted"
    init: str = "spectral"
    conv_branches: int

    architecture: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in WHOLE:
                self._check_whole(field.name)
            elif field.name in NUMBERS:
                self._check_number(field.name)
            elif field.type == "tuple[int, ...]":
                self._check_per_stage(field.name)
        for name in (field.name for field in dataclasses.fields(self) if field.type == "bool"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r}: true or false is needed")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: use {' or '.join(known)}")
        for stage, heads in enumerate(self.num_heads):
            if self.channels(stage) % heads:
                raise InputError(
                    f"num_heads={list(self.num_heads)}: {heads} does not divide {self.channels(stage)} channels"
                )
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise InputError(f"mlp_ratio={self.mlp_ratio!r}: it leaves the MLP of {self.embed_dim} channels none")
        if self.attention == "dot" and (self.value_norm or self.learned_scales):
            raise InputError("value_norm and learned_scales belong to attention='cosine'; with 'dot' set both to false")

    def channels(self, stage: int) -> int:
        """Channels of `stage` (0 to 3)."""
        return self.embed_dim << stage

    def resolution(self, stage: int) -> int:
        """Tokens along one side of the feature map of `stage`."""
        return self.image_size // self.patch_size >> stage

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`; unknown names are an `InputError` that suggests the near one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"unknown model setting '{name}': {suggest(name, known)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the architecture's name included; `config_from_dict` reads it back."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)}

    def _check_whole(self, name: str) -> None:
        value, (low, high) = getattr(self, name), WHOLE[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name}={shown(value)}: a whole number from {low} to {high} is needed")

    def _check_number(self, name: str) -> None:
        value, (low, high) = getattr(self, name), NUMBERS[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name}={shown(value)}: a number from {low:g} to {high:g} is needed")
        # JSON and TOML hand over whole numbers; the annotations promise floats, and a parameter has to be one.
        object.__setattr__(self, name, float(value))

    def _check_per_stage(self, name: str) -> None:
        value = getattr(self, name)
        listed = isinstance(value, list | tuple) and len(value) == STAGES
        if not listed or any(
            not isinstance(v, int) or isinstance(v, bool) or not 1 <= v <= MOST_PER_STAGE for v in value
        ):
            raise InputError(f"{name}={shown(value)}: {STAGES} whole numbers from 1 to {MOST_PER_STAGE} are needed")
        # JSON and TOML hand over lists; the annotations promise tuples.
        object.__setattr__(self, name, tuple(value))

    def _sides(self, image_size: int) -> list[int] | None:
        """The sides of the stages' maps, or nothing if an image of `image_size` does not halve evenly."""
        grid, rest = divmod(image_size, self.patch_size)
        if image_size not in IMAGE_SIZES or rest or grid % 2**MERGES:
            return None
        return [grid >> stage for stage in range(STAGES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig(ModelConfig):
    """The Swin form: square windows, a bias per relative position, non-overlapping patches and merges.

    `window_size` is the side of the windows in tokens; a smaller map is one window. With `shifted_windows` every other
    block moves the windows by half their side, as Swin does; LipsFormer does not.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    shifted_windows: bool = False
    value_norm: bool = False
    epsilon: float = OFFICIAL_EPSILON
    conv_branches: int = 2

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CSwinConfig(ModelConfig):
    """The CSwin form: half of the heads attend in rows, half in columns; overlapping patches and merges; LePE.

    `split_sizes` are the widths in tokens of each stage's rows and columns. In the last stage, and where the width
    reaches that of the map, all heads attend everywhere.
    """

    embed_dim: int = 64
    depths: tuple[int, ...] = (1, 2, 21, 1)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    split_sizes: tuple[int, ...] = (1, 2, 7, 7)
    value_norm: bool = True
    epsilon: float = 1e-6
    conv_branches: int = 1

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

    def attends_everywhere(self, stage: int) -> bool:
        """Whether the windows of `stage` are the whole map."""
        return stage == STAGES - 1 or self.split_sizes[stage] >= self.resolution(stage)

    def _tiles(self, image_size: int) -> bool:
        sides = self._sides(image_size)
        return sides is not None and all(
            side <= split or side % split == 0 for side, split in zip(sides[:-1], self.split_sizes, strict=False)
        )


def shown(value: object) -> str:
    """`value` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def nearest(value: int, candidates: Iterable[int]) -> list[int]:
    """The two of `candidates` that are nearest to `value`, rising."""
    return sorted(sorted(candidates, key=lambda candidate: abs(candidate - value))[:2])


def ways(**fitting: list[int]) -> str:
    """Says which values of which settings can be used instead."""
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
    fields = dict(data)
    architecture = fields.pop("architecture", None)
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture {architecture!r} is not known to this version; known: {', '.join(ARCHITECTURES)}"
        )
    config = ARCHITECTURES[architecture]
    check_fields(fields, [field.name for field in dataclasses.fields(config)], "model setting")
    return config(**fields)
