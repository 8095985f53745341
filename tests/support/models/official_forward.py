"""The official LipsFormer-Swin forward pass, written out a second time, in the order of its paper and its code.

Plain functions over a state dict, token sequences (B, H*W, C) as in the official code, nothing shared with the package:
an error would have to be made twice, in two forms, to go unseen. `test_swin.py` holds it against the official code's
own outputs where those are at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def official_forward(
    weights: Weights, image: Tensor, *, patch: int, window: int, depths: Sequence[int], heads: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Features (B, C) and logits (B, K) of images (B, 3, S, S)."""
    w = weights
    x = F.conv2d(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    side = x.shape[2]
    x = center_norm(w, "patch_embed.norm", x.flatten(2).transpose(1, 2))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            x = block_forward(w, f"layers.{stage}.blocks.{block}", x, side, min(window, side), heads[stage])
        if stage < len(depths) - 1:
            x, side = merge(w, f"layers.{stage}.downsample", x, side), side // 2
    features = center_norm(w, "norm", x).mean(1)
    return features, F.linear(features, w["head.weight"], w["head.bias"])


def center_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    dim = x.shape[-1]
    projection = torch.eye(dim, dtype=x.dtype) - torch.full((dim, dim), 1.0 / dim, dtype=x.dtype)
    return dim / (dim - 1) * (x @ projection) * w[f"{name}.weight"] + w[f"{name}.bias"]


def block_forward(w: Weights, name: str, x: Tensor, side: int, window: int, heads: int) -> Tensor:
    batch, _, dim = x.shape
    image = x.transpose(1, 2).reshape(batch, dim, side, side)
    for branch in range(2):
        conv = f"{name}.dwconv_layers.{branch}"
        out = F.conv2d(image, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=3, groups=dim)
        if branch == 0:
            out = F.conv2d(F.gelu(out), w[f"{name}.nin.weight"], w[f"{name}.nin.bias"])
        image = image + w[f"{name}.scale_layers.{branch}.scale"].reshape(1, dim, 1, 1) * F.gelu(out)
    x = image.flatten(2).transpose(1, 2)
    x = x + w[f"{name}.alpha1.scale"] * attention(w, f"{name}.attn", x, side, window, heads)
    x = center_norm(w, f"{name}.norm1", x)
    hidden = F.gelu(F.linear(x, w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"]))
    x = x + w[f"{name}.alpha2.scale"] * F.linear(hidden, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])
    return center_norm(w, f"{name}.norm2", x)


def attention(w: Weights, name: str, x: Tensor, side: int, window: int, heads: int) -> Tensor:
    """Window by window and head by head."""
    dim = x.shape[-1]
    size = dim // heads
    grid = x.reshape(len(x), side, side, dim)
    out = torch.zeros_like(grid)
    bias = position_bias(w[f"{name}.relative_position_bias_table"], window)
    for top, left in itertools.product(range(0, side, window), repeat=2):
        tokens = grid[:, top : top + window, left : left + window].reshape(len(x), window * window, dim)
        q, k, v = F.linear(tokens, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"]).split(dim, -1)
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            unit_q = q[..., part] / q[..., part].norm(dim=-1, keepdim=True)
            unit_k = k[..., part] / k[..., part].norm(dim=-1, keepdim=True)
            cosine = torch.einsum("bqc,bkc->bqk", unit_q, unit_k)
            mixed.append(torch.softmax(10.0 * cosine + bias[..., head], -1) @ v[..., part])
        answer = F.linear(torch.cat(mixed, -1), w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])
        out[:, top : top + window, left : left + window] = answer.reshape(len(x), window, window, dim)
    return out.reshape(len(x), side * side, dim)


def position_bias(table: Tensor, window: int) -> Tensor:
    """(N, N, heads): for each query and key the table's row of their offset in rows and columns."""
    places = list(itertools.product(range(window), repeat=2))
    rows = [
        [(i - k + window - 1) * (2 * window - 1) + (j - m + window - 1) for k, m in places]
        for i, j in places
    ]  # fmt: skip
    return table[torch.tensor(rows)]


def merge(w: Weights, name: str, x: Tensor, side: int) -> Tensor:
    grid = x.reshape(len(x), side, side, -1)
    corners = [grid[:, row::2, column::2] for column in range(2) for row in range(2)]
    joined = center_norm(w, f"{name}.norm", torch.cat(corners, -1).flatten(1, 2))
    return F.linear(joined, w[f"{name}.reduction.weight"])
