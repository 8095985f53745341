"""The Swin form of LipsFormer (ICLR 2023, arXiv 2304.09856), as the official code computes it.

Feature maps are (B, H, W, C) throughout. Seen as (B, C, H, W) that is torch's channels_last format, so convolutions run
on it without a copy. Parameter names are the official code's: its state dicts load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import WindowAttention
from .config import SwinConfig
from .norm import CenterNorm
from .residual import DropPath, ResidualScale

__all__ = ["LipsFormerSwin"]


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a convolution to a channels-last map: (B, H, W, C) to (B, H', W', C')."""
    out: Tensor = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
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
    """Two depthwise 7x7 branches, window attention, MLP: each a weighted residual; CenterNorm after the last two."""

    def __init__(self, config: SwinConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim = config.channels(stage)
        alpha = 1.0 / sum(config.depths)
        self.dwconv_layers = nn.ModuleList(nn.Conv2d(dim, dim, 7, padding=3, groups=dim) for _ in range(2))
        self.scale_layers = nn.ModuleList(ResidualScale(dim, alpha) for _ in range(2))
        self.nin = nn.Conv2d(dim, dim, 1)
        self.attn = WindowAttention(dim, config.window(stage), config.num_heads[stage], config.temperature)
        self.alpha1 = ResidualScale(dim, alpha)
        self.norm1 = CenterNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.alpha2 = ResidualScale(dim, alpha)
        self.norm2 = CenterNorm(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        mixing, plain = self.dwconv_layers
        mixing_scale, plain_scale = self.scale_layers
        branch = convolve(self.nin, F.gelu(convolve(mixing, x)))
        x = x + self.drop_path(mixing_scale(F.gelu(branch)))
        x = x + self.drop_path(plain_scale(F.gelu(convolve(plain, x))))
        x = self.norm1(x + self.drop_path(self.alpha1(self.attn(x))))
        out: Tensor = self.norm2(x + self.drop_path(self.alpha2(self.mlp(x))))
        return out


class PatchEmbed(nn.Module):
    """Cuts the image into patches, each one linear projection, then CenterNorm."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = CenterNorm(config.embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 3, S, S) to (B, S/patch, S/patch, C)."""
        out: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())
        return out


class PatchMerging(nn.Module):
    """Joins each 2x2 square of tokens into one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = CenterNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
        _, height, width, channels = x.shape
        squares = x.reshape(-1, height // 2, 2, width // 2, 2, channels)
        # (B, H/2, W/2, column, row, C): the official order is top left, bottom left, top right, bottom right
        merged = squares.permute(0, 1, 3, 4, 2, 5).reshape(-1, height // 2, width // 2, 4 * channels)
        out: Tensor = self.reduction(self.norm(merged))
        return out


class Stage(nn.Module):
    """Blocks at one resolution, then a patch merging, but for the last stage."""

    def __init__(self, config: SwinConfig, stage: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in drop_path)
        last = stage == len(config.depths) - 1
        self.downsample = nn.Identity() if last else PatchMerging(config.channels(stage))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C), or the same shape in the last stage."""
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.downsample(x)
        return out


class LipsFormerSwin(nn.Module):
    """Maps normalised float images (B, 3, S, S) to logits (B, num_classes), S being `config.image_size`."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        blocks = sum(config.depths)
        rates = [config.drop_path * block / max(blocks - 1, 1) for block in range(blocks)]
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
        self.patch_embed = PatchEmbed(config)
        self.layers = nn.ModuleList(
            Stage(config, stage, rates[start : start + depth])
            for stage, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        features = config.channels(len(config.depths) - 1)
        self.norm = CenterNorm(features)
        self.head = nn.Linear(features, config.num_classes)

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
