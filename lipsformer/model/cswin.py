"""The CSwin form of LipsFormer, the paper's LipsFormer-Tiny, Small and Base (ICLR 2023, arXiv 2304.09856).

Rows and columns for windows, locally enhanced positional encoding, and overlapping convolutions between the stages are
CSwin's (Dong et al., CVPR 2022); with layer norm in front, dot products and plain residuals it is CSwin itself. The
official repository has configurations of this form but not its code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import build_attention
from .blocks import DepthwiseConv2d, LipsFormer, PatchEmbed, conv_nhwc
from .config import CSwinConfig
from .norm import build_norm
from .windows import join_heads, split_heads, window_partition, window_reverse

__all__ = ["CrossShapedAttention", "LipsFormerCSwin", "StripeAttention"]


class StripeAttention(nn.Module):
    """Attention inside windows of `height` x `width` tokens, plus LePE: a depthwise 3x3 convolution of the values.

    The convolution does not look beyond the window. It gets the values before any normalization by the attention. Being
    linear, it adds only its own norm to the Lipschitz constant.
    """

    def __init__(self, config: CSwinConfig, dim: int, num_heads: int, height: int, width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.height = height
        self.width = width
        self.similarity = build_attention(config, num_heads)
        self.lepe = DepthwiseConv2d(dim, 3)

    def forward(self, qkv: Tensor) -> Tensor:
        """Maps queries, keys and values (B, H, W, 3 * C) to (B, H, W, C)."""
        _, rows, columns, channels = qkv.shape
        windows = window_partition(qkv, self.height, self.width)  # (B', N, 3 * C)
        values = windows.reshape(-1, self.height, self.width, channels)[..., -(channels // 3) :]
        out = join_heads(self.similarity(*split_heads(windows, self.num_heads)))  # (B', N, C)
        out = out + conv_nhwc(self.lepe, values).flatten(1, 2)
        return window_reverse(out, self.height, self.width, rows, columns)


class CrossShapedAttention(nn.Module):
    """Half of the heads attend within columns, half within rows, `split_sizes[stage]` tokens wide.

    Where such a stripe would be the whole map, all heads attend everywhere.
    """

    def __init__(self, config: CSwinConfig, stage: int) -> None:
        super().__init__()
        dim, heads, side = config.channels(stage), config.num_heads[stage], config.resolution(stage)
        split = config.split_sizes[stage]
        shapes = [(side, side)] if config.attends_everywhere(stage) else [(side, split), (split, side)]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.stripes = nn.ModuleList(
            StripeAttention(config, dim // len(shapes), heads // len(shapes), height, width) for height, width in shapes
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        qkv = self.qkv(x).reshape(-1, *x.shape[1:3], 3, x.shape[3])  # (B, H, W, 3, C)
        parts = qkv.chunk(len(self.stripes), dim=-1)
        outs = [stripe(part.flatten(-2)) for stripe, part in zip(self.stripes, parts, strict=True)]
        out: Tensor = self.proj(torch.cat(outs, dim=-1))
        return out


class ConvMerging(nn.Module):
    """A 3x3 convolution with stride 2 to twice the channels, then a norm."""

    def __init__(self, config: CSwinConfig, stage: int) -> None:
        super().__init__()
        dim = config.channels(stage)
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.norm = build_norm(config.norm, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
        out: Tensor = self.norm(conv_nhwc(self.conv, x))
        return out


class LipsFormerCSwin(LipsFormer):
    """The CSwin form: overlapping patches and merges, attention in rows and columns."""

    config: CSwinConfig

    def _embedding(self) -> nn.Module:
        patch = self.config.patch_size  # 4 makes it CSwin's 7x7 convolution with stride 4
        return PatchEmbed(self.config, kernel_size=2 * patch - 1, padding=patch // 2)

    def _attention(self, stage: int, block: int) -> nn.Module:
        return CrossShapedAttention(self.config, stage)

    def _merging(self, stage: int) -> nn.Module:
        return ConvMerging(self.config, stage)
