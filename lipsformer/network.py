"""What the two forms of LipsFormer share: blocks, stages and the way from an image to logits.

Feature maps are (B, H, W, C) throughout. Seen as (B, C, H, W) that is torch's channels_last format, so convolutions run
on it without a copy. Parameter names are the official code's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .depthwise import DepthwiseConv2d
from .norm import build_norm
from .residual import DropPath, ResidualScale

__all__ = ["Block", "LipsFormer", "Mlp", "PatchEmbed", "Stage", "convolve"]


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a convolution to a channels-last map: (B, H, W, C) to (B, H', W', C')."""
    out: Tensor = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out


class PatchEmbed(nn.Module):
    """A convolution whose stride is the patch size, then a norm; patches overlap where its kernel is larger."""

    def __init__(self, config: ModelConfig, *, kernel_size: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size, stride=config.patch_size, padding=padding)
        self.norm = build_norm(config.norm, config.embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 3, S, S) to (B, S/patch, S/patch, C)."""
        out: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())
        return out


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Depthwise 7x7 branches, attention, MLP: each one residual, and a norm for the last two.

    The first convolution branch mixes the channels too: depthwise, GELU, 1x1, GELU. The second is depthwise, GELU.
    """

    def __init__(self, config: ModelConfig, stage: int, attention: nn.Module, drop_path: float) -> None:
        super().__init__()
        dim = config.channels(stage)
        branches = range(config.conv_branches)
        self.pre_norm = config.norm_position == "pre"
        self.dwconv_layers = nn.ModuleList(DepthwiseConv2d(dim, 7) for _ in branches)
        self.scale_layers = nn.ModuleList(self._scale(config, dim) for _ in branches)
        if branches:
            self.nin = nn.Conv2d(dim, dim, 1)
        self.attn = attention
        self.alpha1 = self._scale(config, dim)
        self.norm1 = build_norm(config.norm, dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.alpha2 = self._scale(config, dim)
        self.norm2 = build_norm(config.norm, dim)
        self.drop_path = DropPath(drop_path)

    @staticmethod
    def _scale(config: ModelConfig, dim: int) -> nn.Module:
        return ResidualScale(dim, 1.0 / sum(config.depths)) if config.residual == "weighted" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        for index, (convolution, scale) in enumerate(zip(self.dwconv_layers, self.scale_layers, strict=True)):
            branch = F.gelu(convolve(convolution, x))
            if index == 0:
                branch = F.gelu(convolve(self.nin, branch))
            x = x + self.drop_path(scale(branch))
        x = self._residual(x, self.attn, self.alpha1, self.norm1)
        return self._residual(x, self.mlp, self.alpha2, self.norm2)

    def _residual(self, x: Tensor, branch: nn.Module, scale: nn.Module, norm: nn.Module) -> Tensor:
        if self.pre_norm:
            out: Tensor = x + self.drop_path(scale(branch(norm(x))))
        else:
            out = norm(x + self.drop_path(scale(branch(x))))
        return out


class Stage(nn.Module):
    """Blocks at one resolution, then what leads to the next stage: `downsample`."""

    def __init__(self, blocks: list[Block], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C), or the same shape in the last stage."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.downsample(x)
        return out


class LipsFormer(nn.Module):
    """Maps normalised float images (B, 3, S, S) to logits (B, num_classes), S being `config.image_size`.

    A form says how it embeds an image, attends within a block, and merges tokens between two stages.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rates = iter(_drop_path_rates(config))
        last = len(config.depths) - 1
        self.patch_embed = self._embedding()
        self.layers = nn.ModuleList(
            Stage(
                [Block(config, stage, self._attention(stage, block), next(rates)) for block in range(depth)],
                nn.Identity() if stage == last else self._merging(stage),
            )
            for stage, depth in enumerate(config.depths)
        )
        self.norm = build_norm(config.norm, config.channels(last))
        self.head = nn.Linear(config.channels(last), config.num_classes)

    def _embedding(self) -> nn.Module:
        """Maps (B, 3, S, S) to (B, S/patch, S/patch, C)."""
        raise NotImplementedError

    def _attention(self, stage: int, block: int) -> nn.Module:
        """Maps (B, H, W, C) to the same shape."""
        raise NotImplementedError

    def _merging(self, stage: int) -> nn.Module:
        """Maps (B, H, W, C) of `stage` to (B, H/2, W/2, 2C) of the next."""
        raise NotImplementedError

    def forward_features(self, image: Tensor) -> Tensor:
        """Pooled features (B, C) of normalised float images (B, 3, S, S).

        Raises:
            ValueError: if the images have another size than the model was built for.
        """
        size = self.config.image_size
        if tuple(image.shape[1:]) != (3, size, size):
            raise ValueError(f"images of shape {tuple(image.shape)} given, (batch, 3, {size}, {size}) needed")
        x = self.patch_embed(image)
        for stage in self.layers:
            x = stage(x)
        features: Tensor = self.norm(x).mean(dim=(1, 2))
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised float images (B, 3, S, S)."""
        logits: Tensor = self.head(self.forward_features(image))
        return logits


def _drop_path_rates(config: ModelConfig) -> list[float]:
    blocks = sum(config.depths)
    return [config.drop_path * block / max(blocks - 1, 1) for block in range(blocks)]
