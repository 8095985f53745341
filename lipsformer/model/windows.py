"""Partition of feature maps into windows, and of tokens into heads.

Batch sizes stay symbolic (-1): computing them with `int()`, as the official code does, bakes the batch size of the
trace into an exported graph.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["join_heads", "join_window_heads", "split_heads", "split_window_heads", "window_partition", "window_reverse"]


def window_partition(x: Tensor, height: int, width: int) -> Tensor:
    """Cuts maps (B, H, W, C) into windows (B * H/height * W/width, height * width, C)."""
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, rows // height, height, columns // width, width, channels)
    return x.transpose(2, 3).reshape(-1, height * width, channels)


def window_reverse(windows: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """Inverse of `window_partition`: (B * rows/height * columns/width, height * width, C) to (B, rows, columns, C)."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, rows // height, columns // width, height, width, channels)
    return x.transpose(2, 3).reshape(-1, rows, columns, channels)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, N, C / heads) of the joint projection (B, N, 3 * C).

    Contiguous per head: otherwise every later product would copy them to that layout, and once more for its gradient.
    """
    _, tokens, channels = qkv.shape
    parts = qkv.reshape(-1, tokens, 3, num_heads, channels // (3 * num_heads)).unbind(2)
    q, k, v = (part.transpose(1, 2).contiguous() for part in parts)
    return q, k, v


def split_window_heads(qkv: Tensor, window: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """`split_heads` of the windows of a map (B, H, W, 3 * C), in one copy: each (B * windows, heads, window**2, d)."""
    _, rows, columns, channels = qkv.shape
    shape = (rows // window, window, columns // window, window, 3, num_heads, channels // (3 * num_heads))
    parts = (part.permute(0, 1, 3, 5, 2, 4, 6) for part in qkv.reshape(-1, *shape).unbind(5))
    q, k, v = (part.reshape(-1, num_heads, window**2, shape[-1]) for part in parts)
    return q, k, v


def join_window_heads(out: Tensor, window: int, rows: int, columns: int) -> Tensor:
    """Inverse of `split_window_heads` for one of its parts: (B * windows, heads, N, d) to (B, rows, columns, C)."""
    _, heads, _, depth = out.shape
    x = out.reshape(-1, rows // window, columns // window, heads, window, window, depth)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, rows, columns, heads * depth)


def join_heads(out: Tensor) -> Tensor:
    """Maps (B, heads, N, d) to (B, N, heads * d)."""
    _, heads, tokens, channels = out.shape
    return out.transpose(1, 2).reshape(-1, tokens, heads * channels)
