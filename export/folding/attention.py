"""Folded window attention: affine parts are folded into the projections, and constants are computed.

Queries, keys and values have separate projections, so nothing is split. They go from the map to windows and heads in
one copy of whole head vectors, and the output goes back the same way.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lipsformer.model.attention import ScaledCosineAttention
from lipsformer.model.blocks import conv_nhwc
from lipsformer.model.cswin import CrossShapedAttention, StripeAttention
from lipsformer.model.swin import WindowAttention

from .affine import Affine

__all__ = ["FoldedAttention", "FoldedWindows", "fold_attention", "widen"]

# An epsilon up to this, as the official 1e-24, changes float32 vectors only below a length of 3e-7: rounding noise.
NEGLIGIBLE = 1e-20


def widen(x: Tensor) -> Tensor:
    """Cast to at least float32, for normalization, softmax and pooling in a float16 network."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Unit(nn.Module):
    """factor * x / sqrt(|x|**2 + epsilon) over the last dimension; `factor` may be one per head."""

    factor: Tensor

    def __init__(self, factor: Tensor, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        if self.epsilon > NEGLIGIBLE:
            length = torch.sqrt(length * length + self.epsilon)
        else:
            length = length.clamp_min(self.epsilon**0.5)  # one operation instead of three
        # The small tensor first: one pass over x.
        return (wide * (self.factor.to(wide.dtype) / length)).to(x.dtype)


class FoldedWindows(nn.Module):
    """Attention of some heads inside windows of `height` x `width` tokens, from a map (B, H, W, C) to (B, H, W, C').

    Args:
        similarity: the trained similarity, whose factors are folded.
        query, key, value: affine maps from a token to this attention's channels.
        heads: their number.
        height, width: of the windows, in tokens.
        bias: added to the scores, (heads, N, N), or (windows, heads, N, N) if windows differ.
        lepe: the depthwise convolution of the values, if any; it does not look beyond the window.
    """

    bias: Tensor | None

    def __init__(
        self,
        similarity: nn.Module,
        query: Affine,
        key: Affine,
        value: Affine,
        *,
        heads: int,
        height: int,
        width: int,
        bias: Tensor | None,
        lepe: nn.Conv2d | None,
    ) -> None:
        super().__init__()
        self.heads, self.height, self.width = heads, height, width
        self.lepe = lepe
        self.query_unit: nn.Module
        self.key_unit: nn.Module
        self.value_unit: nn.Module
        self.query_unit = self.key_unit = self.value_unit = nn.Identity()
        depth = len(query.bias) // heads
        if isinstance(similarity, ScaledCosineAttention):
            temperature, scale = (
                torch.as_tensor(factor, dtype=torch.float64).detach().flatten().expand(heads)
                for factor in (similarity.temperature, similarity.value_scale)
            )
            self.query_unit = Unit(temperature[:, None].clone(), similarity.epsilon)
            self.key_unit = Unit(torch.ones(1, dtype=torch.float64), similarity.epsilon)
            if similarity.value_norm:
                self.value_unit = Unit(scale[:, None, None].clone(), similarity.epsilon)
            elif lepe is None:
                value = Affine.scaling(scale.repeat_interleave(depth)).after(value)
            else:  # the convolution sees the values as they are
                self.value_unit = Scale(scale[:, None, None].clone())
        else:
            query = Affine.scaling(torch.full((len(query.bias),), depth**-0.5, dtype=torch.float64)).after(query)
        self.query, self.key, self.value = query.linear(), key.linear(), value.linear(bias=bool(value.bias.any()))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        q = self._to_heads(self.query_unit(self._per_head(self.query(x))))
        k = self._to_heads(self.key_unit(self._per_head(self.key(x))))
        values = self._to_heads(self.value(x))
        v = self.value_unit(values)
        scores = q @ k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + self.bias
        out = torch.softmax(widen(scores), dim=-1).to(v.dtype) @ v
        if self.lepe is not None:
            out = out + self._encode(self.lepe, values)
        return self._to_map(out, *x.shape[1:3])

    def _per_head(self, x: Tensor) -> Tensor:
        """(B, H, W, C') to (B, H, W, heads, d)."""
        return x.reshape(-1, *x.shape[1:3], self.heads, x.shape[-1] // self.heads)

    def _to_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, C') or (B, H, W, heads, d) to (B * windows, heads, N, d).

        To (B, windows, heads, N, d) if windows differ.
        """
        rows, columns = x.shape[1:3]
        heads, depth = self.heads, x.shape[3:].numel() // self.heads
        x = x.reshape(-1, rows // self.height, self.height, columns // self.width, self.width, heads, depth)
        windows = self.bias.shape[:-3] if self.bias is not None else ()
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, *windows, heads, self.height * self.width, depth)

    def _to_map(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Inverse of `_to_heads`, the heads joined: to (B, H, W, C')."""
        heads, _, depth = x.shape[-3:]
        x = x.reshape(-1, rows // self.height, columns // self.width, heads, self.height, self.width, depth)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, rows, columns, heads * depth)

    def _encode(self, lepe: nn.Conv2d, values: Tensor) -> Tensor:
        """LePE: convolve each window of the values (B * windows, heads, N, d) separately.

        It reads the heads' values rather than the map's: TensorRT for RTX needs the map to have one reader.
        """
        _, heads, tokens, depth = values.shape
        windows = values.transpose(1, 2).reshape(-1, self.height, self.width, heads * depth)
        return conv_nhwc(lepe, windows).reshape(-1, tokens, heads, depth).transpose(1, 2)


class Scale(nn.Module):
    """(..., heads, N, d) times one factor per head."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class FoldedAttention(nn.Module):
    """Attention by groups of heads, then the projection: (B, H, W, C) to (B, H, W, C).

    If the projection was made without its bias, `offset` (C,) still has to be added.
    """

    def __init__(self, groups: list[FoldedWindows], projection: Affine, *, bias: bool, shift: int = 0) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)
        self.proj = projection.linear(bias=bias)
        self.offset = projection.bias
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        outs = [group(x) for group in self.groups]
        out: Tensor = self.proj(outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1))
        return out.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else out


def fold_attention(attention: nn.Module, before: Affine, after: Affine, *, bias: bool) -> FoldedAttention:
    """Fold a trained block's attention, with the affine maps before and after it, into its projections.

    Args:
        attention: a `WindowAttention` or a `CrossShapedAttention`.
        before, after: affine maps of the channels.
        bias: whether the last projection adds its bias; otherwise `offset` holds it.

    Raises:
        TypeError: for any other attention.
    """
    if isinstance(attention, WindowAttention):
        return _fold_square(attention, before, after, bias)
    if isinstance(attention, CrossShapedAttention):
        return _fold_cross(attention, before, after, bias)
    raise TypeError(f"no folding for {type(attention).__name__}")


def _fold_square(attention: WindowAttention, before: Affine, after: Affine, bias: bool) -> FoldedAttention:
    qkv = Affine.of(attention.qkv).after(before)
    dim = len(qkv.bias) // 3
    query, key, value = (qkv.rows(i * dim, (i + 1) * dim) for i in range(3))
    projection = after.after(Affine.of(attention.proj))
    similarity = attention.similarity
    if not (isinstance(similarity, ScaledCosineAttention) and similarity.value_norm):
        # Each row of the softmax sums to one: the values' bias passes through it, to the projection.
        scale = torch.as_tensor(getattr(similarity, "value_scale", 1.0), dtype=torch.float64).detach().flatten()
        passed = value.bias * scale.expand(attention.num_heads).repeat_interleave(dim // attention.num_heads)
        projection = projection.after(Affine.shift(passed))
        value = Affine(value.weight, torch.zeros_like(value.bias))
    scores = attention.position_bias().detach().double()
    if attention.shift:
        scores = scores + attention.mask.double()
    window = attention.window
    group = FoldedWindows(
        similarity, query, key, value,
        heads=attention.num_heads, height=window, width=window, bias=scores, lepe=None,
    )  # fmt: skip
    return FoldedAttention([group], projection, bias=bias, shift=attention.shift)


def _fold_cross(attention: CrossShapedAttention, before: Affine, after: Affine, bias: bool) -> FoldedAttention:
    qkv = Affine.of(attention.qkv).after(before)
    dim = len(qkv.bias) // 3
    part = dim // len(attention.stripes)
    groups = []
    for index, stripe in enumerate(attention.stripes):
        assert isinstance(stripe, StripeAttention)  # noqa: S101 - a ModuleList forgets the type
        query, key, value = (qkv.rows(i * dim + index * part, i * dim + (index + 1) * part) for i in range(3))
        groups.append(
            FoldedWindows(
                stripe.similarity, query, key, value,
                heads=stripe.num_heads, height=stripe.height, width=stripe.width, bias=None,
                lepe=copy.deepcopy(stripe.lepe).double(),
            )
        )  # fmt: skip
    return FoldedAttention(groups, after.after(Affine.of(attention.proj)), bias=bias)
