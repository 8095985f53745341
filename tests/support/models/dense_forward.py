"""Both forms written out a second time: attention over the whole map, under a mask of who may see whom.

Plain functions over a state dict and the settings of a configuration as plain data. Nothing is shared with the package:
there are no windows to cut and no map to roll, a token's window is a number that is compared with another's. Sources:
Swin (Liu et al., ICCV 2021), CSwin (Dong et al., CVPR 2022) and its official code, LipsFormer (ICLR 2023).

By hand, the package was also held against running code of others, with equal weights in float64: the logits of
`cswin_tiny` differ from those of CSwin's official code by 1.1e-15 (relative L2), those of `swin_tiny` not at all from
timm 1.0.31's without fused attention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Settings = Mapping[str, Any]


def dense_forward(weights: Weights, image: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Features (B, C), or (B, N * C) with a flat head, and logits (B, K) of images (B, 3, S, S).

    `settings` is what `ModelConfig.to_dict` gives.
    """
    w, s = weights, settings
    overlapping = s["architecture"] == "lipsformer_cswin"
    side = s["image_size"] // s["patch_size"]
    x = conv(w, "patch_embed.proj", image, stride=s["patch_size"], padding=s["patch_size"] // 2 * overlapping)
    x = norm(w, "patch_embed.norm", to_tokens(x), s)
    for stage, depth in enumerate(s["depths"]):
        for block in range(depth):
            x = block_forward(w, f"layers.{stage}.blocks.{block}", x, side, s, stage=stage, odd=block % 2 == 1)
        if stage < len(s["depths"]) - 1:
            x = (merge_by_convolution if overlapping else merge_squares)(w, f"layers.{stage}.downsample", x, side, s)
            side //= 2
    tokens = norm(w, "norm", x, s)
    features = tokens.reshape(len(x), -1) if s["pooling"] == "flat" else tokens.mean(1)
    return features, linear(w, "head", features)


def block_forward(w: Weights, name: str, x: Tensor, side: int, s: Settings, *, stage: int, odd: bool) -> Tensor:
    def add(x: Tensor, scale: str, branch: Tensor) -> Tensor:
        if s["residual"] == "convex":
            alpha = 1 / (1 + torch.exp(-w[f"{name}.{scale}.logit"]))
            return (1 - alpha) * x + alpha * branch
        return x + (branch * w[f"{name}.{scale}.scale"] if s["residual"] == "weighted" else branch)

    def activation(t: Tensor, channels: int) -> Tensor:
        if s["activation"] == "gelu":
            return F.gelu(t)
        pairs = torch.stack(t.chunk(2, channels)).sort(dim=0, descending=True).values
        return torch.cat(list(pairs), channels)

    for index in range(s["conv_branches"]):
        padding = s["conv_kernel"] // 2
        out = conv(w, f"{name}.dwconv_layers.{index}", to_map(x, side), padding=padding, groups=x.shape[-1])
        out = activation(out, 1)
        out = activation(conv(w, f"{name}.nin", out), 1) if index == 0 else out
        x = add(x, f"scale_layers.{index}", to_tokens(out))
    attend = swin_attention if s["architecture"] == "lipsformer_swin" else cswin_attention

    def attention(t: Tensor) -> Tensor:
        return linear(w, f"{name}.attn.proj", attend(w, f"{name}.attn", t, side, s, stage, odd))

    def mlp(t: Tensor) -> Tensor:
        return linear(w, f"{name}.mlp.fc2", activation(linear(w, f"{name}.mlp.fc1", t), -1))

    if s["norm_position"] == "pre":
        x = add(x, "alpha1", attention(norm(w, f"{name}.norm1", x, s)))
        return add(x, "alpha2", mlp(norm(w, f"{name}.norm2", x, s)))
    x = norm(w, f"{name}.norm1", add(x, "alpha1", attention(x)), s)
    return norm(w, f"{name}.norm2", add(x, "alpha2", mlp(x)), s)


def swin_attention(w: Weights, name: str, x: Tensor, side: int, s: Settings, stage: int, odd: bool) -> Tensor:
    """Shifted windows begin at the shift: those at the map's edges are smaller, nothing goes around."""
    window = min(s["window_size"], side)
    shift = window // 2 if s["shifted_windows"] and odd and window < side else 0
    rows, columns = places(side)
    together = same((rows - shift).div(window, rounding_mode="floor")) & same(
        (columns - shift).div(window, rounding_mode="floor")
    )
    down, right = rows[:, None] - rows, columns[:, None] - columns  # (N, N): from the key to the query
    entry = ((down + window - 1) * (2 * window - 1) + right + window - 1) * together  # elsewhere any row will do
    bias = w[f"{name}.relative_position_bias_table"][entry]  # (N, N, heads)
    heads = s["num_heads"][stage]
    outs = [
        mix(w, f"{name}.similarity", head, qkv, bias[..., head], together, s)
        for head, qkv in enumerate(split_by_head(w, name, x, heads))
    ]
    return torch.cat(outs, -1)


def cswin_attention(w: Weights, name: str, x: Tensor, side: int, s: Settings, stage: int, odd: bool) -> Tensor:
    """The first half of the heads sees the token's columns, the second half its rows; LePE is added to each."""
    split, heads = s["split_sizes"][stage], s["num_heads"][stage]
    rows, columns = places(side)
    stripes = [same(columns // split), same(rows // split)]
    if stage == len(s["depths"]) - 1 or split >= side:
        stripes = [torch.ones_like(stripes[0])]
    size, outs = x.shape[-1] // heads, []
    for head, qkv in enumerate(split_by_head(w, name, x, heads)):
        number, within = divmod(head, heads // len(stripes))
        stripe, channels = f"{name}.stripes.{number}", slice(within * size, (within + 1) * size)
        out = mix(w, f"{stripe}.similarity", within, qkv, 0.0, stripes[number], s)
        kernel, bias = w[f"{stripe}.lepe.weight"][channels, 0], w[f"{stripe}.lepe.bias"][channels]
        outs.append(out + neighbors(qkv[2], kernel, stripes[number], side) + bias)
    return torch.cat(outs, -1)


def split_by_head(w: Weights, name: str, x: Tensor, heads: int) -> list[list[Tensor]]:
    """For each head its q, k and v, each (B, N, d)."""
    q, k, v = (part.chunk(heads, -1) for part in linear(w, f"{name}.qkv", x).chunk(3, -1))
    return [[q[head], k[head], v[head]] for head in range(heads)]


def neighbors(v: Tensor, kernel: Tensor, together: Tensor, side: int) -> Tensor:
    """The sum over the 3x3 `kernel` (C, 3, 3) of those neighbors in `v` (B, N, C) that a token may see."""
    rows, columns = places(side)
    total = torch.zeros_like(v)
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        is_there = (rows == rows[:, None] + down) & (columns == columns[:, None] + right) & together
        total = total + (is_there.to(v.dtype) @ v) * kernel[:, down + 1, right + 1]
    return total


def mix(w: Weights, name: str, head: int, qkv: list[Tensor], bias: Tensor | float, seen: Tensor, s: Settings) -> Tensor:
    """One head: q, k and v, each (B, N, d), to (B, N, d); `seen` (N, N) says which keys a query may see."""
    q, k, v = qkv
    if s["attention"] == "cosine":
        tau, nu = (w[f"{name}.{p}"][head] if s["learned_scales"] else s[p] for p in ("temperature", "value_scale"))
        q, k = unit(q, s["epsilon"]), unit(k, s["epsilon"])
        v = unit(v, s["epsilon"]) if s["value_norm"] else v
    else:
        tau, nu = 1 / math.sqrt(q.shape[-1]), 1.0
    scores = tau * torch.einsum("bqc,bkc->bqk", q, k) + bias
    return nu * torch.softmax(scores.masked_fill(~seen, -math.inf), -1) @ v


def unit(x: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + epsilon)


def norm(w: Weights, name: str, x: Tensor, s: Settings) -> Tensor:
    centerd = x - x.mean(-1, keepdim=True)
    if s["norm"] == "center":
        factor: float | Tensor = x.shape[-1] / (x.shape[-1] - 1)
    else:
        factor = 1 / torch.sqrt((centerd * centerd).mean(-1, keepdim=True) + 1e-5)
    return centerd * factor * w[f"{name}.weight"] + w[f"{name}.bias"]


def merge_squares(w: Weights, name: str, x: Tensor, side: int, s: Settings) -> Tensor:
    grid = x.reshape(len(x), side, side, -1)
    corners = [grid[:, row::2, column::2] for column in range(2) for row in range(2)]
    return F.linear(norm(w, f"{name}.norm", torch.cat(corners, -1).flatten(1, 2), s), w[f"{name}.reduction.weight"])


def merge_by_convolution(w: Weights, name: str, x: Tensor, side: int, s: Settings) -> Tensor:
    return norm(w, f"{name}.norm", to_tokens(conv(w, f"{name}.conv", to_map(x, side), stride=2, padding=1)), s)


def conv(w: Weights, name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def places(side: int) -> tuple[Tensor, Tensor]:
    """Row and column of each of the side * side tokens."""
    number = torch.arange(side * side)
    return number // side, number % side


def same(label: Tensor) -> Tensor:
    """(N, N): whether two tokens have the same label."""
    return label[:, None] == label


def to_map(x: Tensor, side: int) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), -1, side, side)


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
