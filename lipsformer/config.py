"""Model configurations: validated data that says everything needed to build a network.

Sizes are from the official code of LipsFormer (ICLR 2023, arXiv 2304.09856); `nano` is ours, for small images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from .errors import InputError, check_fields, suggest

__all__ = ["VARIANTS", "SwinConfig", "config_from_dict", "make_config"]

MERGES = 3  # four stages, each but the first entered by halving height and width
IMAGE_SIZES = range(32, 385)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The Swin form of LipsFormer.

    `num_heads` and `depths` have one entry per stage; stage i works on `embed_dim * 2**i` channels and on a square
    of `image_size / patch_size / 2**i` tokens, cut into windows of `window_size` (or one window, where it is smaller).
    `drop_path` is the stochastic depth rate of the last block; it grows linearly from 0 at the first.
    `temperature` is the tau of scaled cosine similarity attention (10 in the official code).

    Raises:
        InputError: if a field is out of range or the image cannot be tiled; the message names sizes that can be.
    """

    image_size: int = 224
    patch_size: int = 4
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    temperature: float = 10.0

    architecture: ClassVar[str] = "lipsformer_swin"

    def __post_init__(self) -> None:
        least = {"image_size": 1, "patch_size": 1, "num_classes": 1, "embed_dim": 2, "window_size": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise InputError(f"{name}={value!r}: a whole number of at least {minimum} is needed")
        stages = MERGES + 1
        for name in ("depths", "num_heads"):
            value = getattr(self, name)
            listed = isinstance(value, list | tuple) and len(value) == stages
            if not listed or any(not isinstance(v, int) or v < 1 for v in value):
                raise InputError(f"{name}={value!r}: {stages} whole numbers of at least 1 are needed")
            # JSON and TOML hand over lists; the annotations promise tuples.
            object.__setattr__(self, name, tuple(value))
        for stage, heads in enumerate(self.num_heads):
            if self.channels(stage) % heads:
                raise InputError(
                    f"num_heads={list(self.num_heads)}: {heads} does not divide {self.channels(stage)} channels"
                )
        for name in ("drop_path", "mlp_ratio", "temperature"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name}={value!r}: a number is needed")
        if not 0.0 <= self.drop_path < 1.0:
            raise InputError(f"drop_path={self.drop_path!r}: a rate of at least 0 and below 1 is needed")
        if self.embed_dim * self.mlp_ratio < 1 or self.temperature <= 0:
            raise InputError("mlp_ratio must leave the MLP a channel and temperature be above 0")
        if not self._tiles(self.image_size, self.window_size):
            raise InputError(self._tiling_error())

    def channels(self, stage: int) -> int:
        """Channels of `stage` (0 to 3)."""
        return self.embed_dim << stage

    def resolution(self, stage: int) -> int:
        """Tokens along one side of the feature map of `stage`."""
        return self.image_size // self.patch_size >> stage

    def window(self, stage: int) -> int:
        """Side of the attention windows of `stage`: `window_size`, or the whole map where that is smaller."""
        return min(self.window_size, self.resolution(stage))

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

    def _tiles(self, image_size: int, window_size: int) -> bool:
        grid, rest = divmod(image_size, self.patch_size)
        if image_size not in IMAGE_SIZES or rest or grid % 2**MERGES:
            return False
        sides = [grid // 2**stage for stage in range(MERGES + 1)]
        return all(side <= window_size or side % window_size == 0 for side in sides)

    def _tiling_error(self) -> str:
        message = (
            f"image_size={self.image_size} cannot be tiled with patch_size={self.patch_size} and "
            f"window_size={self.window_size}"
        )
        sizes = sorted(
            (s for s in IMAGE_SIZES if self._tiles(s, self.window_size)), key=lambda s: abs(s - self.image_size)
        )
        windows = [w for w in range(2, 33) if self._tiles(self.image_size, w)]
        ways = []
        if sizes:
            ways.append("image_size " + " or ".join(str(s) for s in sorted(sizes[:2])))
        if windows:
            windows.sort(key=lambda w: abs(w - self.window_size))
            ways.append("window_size " + " or ".join(str(w) for w in sorted(windows[:2])))
        return f"{message}; use {', or keep the rest and use '.join(ways)}" if ways else f"{message}; lower patch_size"


ARCHITECTURES = {config.architecture: config for config in (SwinConfig,)}


def config_from_dict(data: Mapping[str, Any]) -> SwinConfig:
    """The configuration that `to_dict` wrote.

    Raises:
        InputError: if the architecture is unknown, or a field is unknown, missing or invalid.
    """
    fields = dict(data)
    architecture = fields.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture {architecture!r} is not known to this version; known: {', '.join(ARCHITECTURES)}"
        )
    config = ARCHITECTURES[architecture]
    check_fields(fields, [field.name for field in dataclasses.fields(config)], "model setting")
    return config(**fields)


VARIANTS: dict[str, SwinConfig] = {
    "lipsformer_swin_nano": SwinConfig(image_size=64, embed_dim=32, num_heads=(1, 2, 4, 8), window_size=4),
    "lipsformer_swin_tiny": SwinConfig(),
    "lipsformer_swin_small": SwinConfig(depths=(2, 2, 18, 2)),
    "lipsformer_swin_base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}


def make_config(name: str, **overrides: Any) -> SwinConfig:
    """The configuration of variant `name` with `overrides`.

    Raises:
        InputError: for an unknown name or setting (the near one is suggested) or an invalid combination.
    """
    if name not in VARIANTS:
        raise InputError(f"unknown model '{name}': {suggest(name, VARIANTS)}")
    return VARIANTS[name].replace(**overrides)
