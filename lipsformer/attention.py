"""Scaled cosine similarity attention over non-overlapping windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WindowAttention", "merge_windows", "split_windows"]


def split_windows(x: Tensor, window: int) -> Tensor:
    """Cuts maps (B, H, W, C) into windows (B * H/window * W/window, window**2, C)."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `split_windows`: (B * H/window * W/window, window**2, C) to (B, H, W, C).

    The batch size stays symbolic (-1): computing it with `int()`, as the official code does, bakes the batch size of
    the trace into an exported graph.
    """
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_position_index(window: int) -> Tensor:
    """For each pair of a window's tokens, the bias table's row of their offset: (window**2, window**2), int64."""
    axis = torch.arange(window)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    coordinates = torch.stack([rows.flatten(), columns.flatten()])  # (2, N)
    offset = coordinates[:, :, None] - coordinates[:, None, :] + window - 1  # (2, N, N), from 0
    return offset[0] * (2 * window - 1) + offset[1]


class WindowAttention(nn.Module):
    """softmax(temperature * cos(q, k) + bias) v inside each window, as the official Swin code computes it.

    q and k are L2-normalised per head (LipsFormer, section 4.1.2). The official code leaves v as it is; the paper's
    Lipschitz bound needs it normalised too. A learned table gives the bias of each relative position (Swin).

    Args:
        dim: channels C.
        window: side of the square windows, in tokens.
        num_heads: heads; divides `dim`.
        temperature: the constant tau in front of the cosine.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, num_heads: int, temperature: float) -> None:
        super().__init__()
        self.window = window
        self.num_heads = num_heads
        self.temperature = temperature
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def position_bias(self) -> Tensor:
        """The bias of every pair of tokens: (heads, N, N) with N = window**2."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C); H and W are multiples of the window."""
        _, height, width, channels = x.shape
        tokens = self.window**2
        windows = split_windows(x, self.window)  # (B', N, C)
        qkv = self.qkv(windows).reshape(-1, tokens, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B', heads, N, C/heads)
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attention = torch.softmax(self.temperature * cosine + self.position_bias(), dim=-1)  # (B', heads, N, N)
        out = self.proj((attention @ v).transpose(1, 2).reshape(-1, tokens, channels))
        return merge_windows(out, self.window, height, width)
