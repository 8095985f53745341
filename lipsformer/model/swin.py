"""The Swin form of LipsFormer (ICLR 2023, arXiv 2304.09856), as the official code computes it.

Parameter names are the official code's: its state dicts load as they are. With layer norm in front, dot products, plain
residuals and shifted windows it is Swin itself (Liu et al., ICCV 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import build_attention
from .blocks import LipsFormer, PatchEmbed
from .config import SwinConfig
from .norm import build_norm
from .windows import join_window_heads, split_window_heads, window_partition

__all__ = ["LipsFormerSwin", "WindowAttention"]

FORBIDDEN = -100.0  # added to the scores of two tokens that only share a window because the map was rolled


def made_on_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lets `make` compute on the CPU, and moves the table to the default device.

    Arithmetic on the meta device, where checkpoints are compared with their configuration, imports PyTorch's compiler:
    nearly two seconds at the start of most commands.
    """

    @functools.wraps(make)
    def made(*sizes: int) -> Tensor:
        with torch.device("cpu"):
            table = make(*sizes)
        return table.to(torch.get_default_device())

    return made


@made_on_cpu
def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, by their offset: (window**2, window**2), int64."""
    axis = torch.arange(window)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    coordinates = torch.stack([rows.flatten(), columns.flatten()])  # (2, N)
    offset = coordinates[:, :, None] - coordinates[:, None, :] + window - 1  # (2, N, N), from 0
    return offset[0] * (2 * window - 1) + offset[1]


@made_on_cpu
def shift_mask(resolution: int, window: int, shift: int) -> Tensor:
    """Score mask that separates tokens from opposite ends of a map rolled by `shift`: (windows, 1, N, N)."""
    axis = torch.arange(resolution)
    region = (axis >= resolution - window).long() + (axis >= resolution - shift).long()
    regions = window_partition((3 * region[:, None] + region)[None, :, :, None], window, window)  # (windows, N, 1)
    return torch.where(regions == regions.transpose(1, 2), 0.0, FORBIDDEN)[:, None]


class WindowAttention(nn.Module):
    """Window attention with a learned bias for each relative position (Swin, section 3.2).

    Args:
        config: the configuration of the network.
        stage: the stage, which gives channels, heads and window.
        shift: tokens by which the windows are moved right and down, cyclically.
    """

    relative_position_index: Tensor
    mask: Tensor

    def __init__(self, config: SwinConfig, stage: int, shift: int) -> None:
        super().__init__()
        dim = config.channels(stage)
        self.window = config.window(stage)
        self.num_heads = config.num_heads[stage]
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, self.num_heads))
        self.register_buffer("relative_position_index", relative_position_index(self.window), persistent=False)
        if shift:
            self.register_buffer("mask", shift_mask(config.resolution(stage), self.window, shift), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.similarity = build_attention(config, self.num_heads)
        self.proj = nn.Linear(dim, dim)

    def position_bias(self) -> Tensor:
        """The bias of every pair of tokens: (heads, N, N) with N = window**2."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C); H and W are multiples of the window."""
        _, rows, columns, _ = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        q, k, v = split_window_heads(self.qkv(x), self.window, self.num_heads)  # each (B * windows, heads, N, d)
        bias = self.position_bias()  # (heads, N, N) with N = window**2
        if self.shift:
            q, k, v = (
                part.reshape(-1, len(self.mask), *part.shape[1:]) for part in (q, k, v)
            )  # (B, windows, heads, N, d)
            bias = bias + self.mask  # (windows, heads, N, N)
        out = self.similarity(q, k, v, bias)
        x = self.proj(join_window_heads(out.flatten(0, 1) if self.shift else out, self.window, rows, columns))
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x


class PatchMerging(nn.Module):
    """Merges each 2x2 square of tokens into one token with twice the channels (Swin, section 3.1)."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        dim = config.channels(stage)
        self.norm = build_norm(config.norm, 4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
        _, height, width, channels = x.shape
        squares = x.reshape(-1, height // 2, 2, width // 2, 2, channels)
        # (B, H/2, W/2, column, row, C): the official order is top left, bottom left, top right, bottom right
        merged = squares.permute(0, 1, 3, 4, 2, 5).reshape(-1, height // 2, width // 2, 4 * channels)
        out: Tensor = self.reduction(self.norm(merged))
        return out


class LipsFormerSwin(LipsFormer):
    """The Swin form: non-overlapping patches and merges, attention in square windows."""

    config: SwinConfig

    def _embedding(self) -> nn.Module:
        return PatchEmbed(self.config, kernel_size=self.config.patch_size, padding=0)

    def _attention(self, stage: int, block: int) -> nn.Module:
        return WindowAttention(self.config, stage, self.config.shift(stage, block))

    def _merging(self, stage: int) -> nn.Module:
        return PatchMerging(self.config, stage)
