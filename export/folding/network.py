"""Exact inference-time folding: the same function as a trained network, with fewer operations.

Affine parts are folded into their neighbors: residual scales and norms into the projections around them, the patch
embedding norm and the pixel normalization into the stem's convolution, the merge norm and slicing into one linear
layer. Some parts cannot be folded: scales behind a GELU, the normalization of queries and
keys, LayerNorms, and biases that a zero-padded convolution reads at the edges (there zero means the unshifted value).

With CenterNorm after each residual sum, u = x + attention(x) and y = N2(N1(u) + mlp(N1(u))), N1 is folded into the
MLP's first layer and N2 into its second; on the trunk the two together are a scale and a correction of rank two.

The alpha of a convex residual is folded like that of a weighted one; 1 - alpha is left on the trunk, in front of
attention as a product, after it as a part of the norms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import Block, LipsFormer, PatchEmbed, Stage, conv_nhwc
from lipsformer.model.cswin import ConvMerging
from lipsformer.model.norm import CenterNorm
from lipsformer.model.residual import ConvexResidual, ResidualScale
from lipsformer.model.swin import PatchMerging

from .affine import Affine, convolution_then
from .attention import fold_attention, widen

__all__ = ["FoldedLipsFormer", "fold"]


class Branch(nn.Module):
    """The residual sum of a depthwise convolution branch: (B, H, W, C) to the same shape."""

    scale: Tensor | None

    def __init__(self, depthwise: nn.Module, mix: nn.Module | None, residual: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.depthwise = copy.deepcopy(depthwise).double()
        self.mix = None if mix is None else Affine.of(mix).linear()
        self.activation = activation
        self.skip, scale = shares(residual)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.activation(conv_nhwc(self.depthwise, x))
        if self.mix is not None:
            branch = self.activation(self.mix(branch))
        out: Tensor = scaled(x, self.skip) + (branch if self.scale is None else branch * self.scale)
        return out


class TwoNorms(nn.Module):
    """`skip` times the linear part of `second` after `first`, both CenterNorms, of (..., C), plus `constant` (C,).

    D2 P D1 P, with P = I - 11'/C, is diag(d1 d2) minus a matrix of rank two, which two narrow products apply; a third
    column carries the constant.
    """

    gain: Tensor
    sums: Tensor
    ones: Tensor
    spread: Tensor

    def __init__(self, first: CenterNorm, second: CenterNorm, skip: float, constant: Tensor) -> None:
        super().__init__()
        dim = first.dim
        factor = skip * (dim / (dim - 1)) ** 2
        gain1, gain2 = first.weight.detach().double(), second.weight.detach().double() * factor
        mean = torch.full_like(gain1, 1 / dim)
        self.register_buffer("gain", gain1 * gain2)
        self.register_buffer("sums", torch.stack([mean, gain1 / dim, torch.zeros_like(mean)], dim=1))  # (C, 3)
        self.register_buffer("ones", torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        self.register_buffer("spread", torch.stack([gain2 * (gain1.mean() - gain1), -gain2, constant]))  # (3, C)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + (x @ self.sums + self.ones) @ self.spread


class FoldedBlock(nn.Module):
    """A block in two halves: `hidden` returns the trunk and the MLP's hidden units, `output` joins them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.activation = copy.deepcopy(block.activation)
        self.branches = nn.ModuleList(
            Branch(depthwise, block.nin if index == 0 else None, residual, self.activation)
            for index, (depthwise, residual) in enumerate(zip(block.dwconv_layers, block.scale_layers, strict=True))
        )
        norm1, norm2 = block.norm1, block.norm2
        center = isinstance(norm1, CenterNorm)
        dim = block.mlp.fc1.in_features
        same = Affine.scaling(torch.ones(dim))
        (self.skip1, scale1), (self.skip2, scale2) = shares(block.alpha1), shares(block.alpha2)
        alpha1, alpha2 = (same if scale is None else Affine.scaling(scale.expand(dim)) for scale in (scale1, scale2))
        fc1, fc2 = Affine.of(block.mlp.fc1), alpha2.after(Affine.of(block.mlp.fc2))
        folds_after = center and not block.pre_norm
        before = Affine.of(norm1) if center and block.pre_norm else same
        self.attention = fold_attention(block.attn, before, alpha1, bias=not folds_after)
        self.trunk: nn.Module = nn.Identity()
        if center and isinstance(norm1, CenterNorm) and isinstance(norm2, CenterNorm):
            if block.pre_norm:
                fc1 = fc1.after(Affine.of(norm2))
            else:
                first, second = Affine.of(norm1), Affine.of(norm2)
                offset = self.attention.offset  # of the trunk, which is without it
                middle = self.skip2 * first.after(Affine.shift(offset)).bias
                constant = second.weight @ (middle + fc2.bias) + second.bias
                fc1 = fc1.after(first).after(Affine.shift(offset))
                fc2 = Affine(second.weight @ fc2.weight, constant)
                self.trunk = TwoNorms(norm1, norm2, self.skip2, constant)
                self.skip2 = 1.0  # it is in the norms
        self.fc1, self.fc2 = fc1.linear(), fc2.linear(bias=not folds_after)
        kept = [nn.Identity() if center else copy.deepcopy(norm).double() for norm in (norm1, norm2)]
        self.before = nn.ModuleList(kept if block.pre_norm else (nn.Identity(), nn.Identity()))
        self.after = nn.ModuleList((nn.Identity(), nn.Identity()) if block.pre_norm else kept)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, H, W, C): the trunk (B, H, W, C) after attention, and the hidden units (B, H, W, hidden)."""
        for branch in self.branches:
            x = branch(x)
        x = self.after[0](scaled(x, self.skip1) + self.attention(self.before[0](x)))
        return x, self.activation(self.fc1(self.before[1](x)))

    def output(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The block's output (..., C) from the result of `hidden`; linear if the norms are CenterNorms."""
        out: Tensor = self.after[1](scaled(self.trunk(x), self.skip2) + self.fc2(hidden))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.output(*self.hidden(x))


class FoldedPatchMerging(nn.Module):
    """Patch merging of 2x2 tokens; a linear merge norm is folded into the reduction."""

    def __init__(self, merge: PatchMerging) -> None:
        super().__init__()
        reduction = Affine.of(merge.reduction)
        # Trained on the order top left, bottom left, top right, bottom right; rows first is one block copy.
        order = torch.arange(merge.reduction.in_features).reshape(2, 2, -1).transpose(0, 1).flatten()
        self.norm: nn.Module = nn.Identity()
        if isinstance(merge.norm, CenterNorm):
            reduction = reduction.after(Affine.of(merge.norm))
        else:
            self.norm = copy.deepcopy(merge.norm).double()
            for parameter in self.norm.parameters():
                parameter.data = parameter.data[order]
        folds = isinstance(merge.norm, CenterNorm)
        self.reduction = Affine(reduction.weight[:, order], reduction.bias).linear(bias=folds)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
        _, height, width, channels = x.shape
        squares = x.reshape(-1, height // 2, 2, width // 2, 2 * channels).transpose(2, 3)
        out: Tensor = self.reduction(self.norm(squares.reshape(-1, height // 2, width // 2, 4 * channels)))
        return out


class ConvolutionThenNorm(nn.Module):
    """A convolution and the norm that follows it: folded in, or applied after it if it is a LayerNorm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        center = isinstance(norm, CenterNorm)
        same = Affine.scaling(torch.ones(conv.out_channels))
        self.conv = convolution_then(conv, Affine.of(norm) if center else same)
        self.norm = nn.Identity() if center else copy.deepcopy(norm).double()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H', W', C')."""
        out: Tensor = self.norm(conv_nhwc(self.conv, x))
        return out


class FoldedLipsFormer(nn.Module):
    """A folded network, from pixels (B, S, S, 3), uint8 or float, to logits (B, K) and features (B, C).

    `fold` makes it. With CenterNorm the final norm is applied to the pooled map, as a matrix. With a flat head the
    features are (B, H * W * C), and the norm is applied to each token: as itself, which costs less, and its matrix has
    many small entries that int8 would round away.
    """

    mean: Tensor | None
    last: FoldedBlock

    def __init__(self, model: LipsFormer, preprocessing: Preprocessing) -> None:
        super().__init__()
        std = torch.tensor(preprocessing.std, dtype=torch.float64) * 255
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64) * 255
        assert isinstance(model.patch_embed, PatchEmbed)  # noqa: S101 - the forms share it
        self.stem = ConvolutionThenNorm(model.patch_embed.proj, model.patch_embed.norm)
        with torch.no_grad():
            conv = self.stem.conv
            conv.weight.div_(std[:, None, None])
            padded = any(conv.padding)  # with zeros, which stand for the mean
            if not padded and conv.bias is not None:
                conv.bias.sub_(conv.weight.sum(dim=(2, 3)) @ mean)
        self.register_buffer("mean", mean if padded else None)
        *body, last = chain(model)
        assert isinstance(last, FoldedBlock)  # noqa: S101
        self.body, self.last = nn.Sequential(*body), last
        self.center = isinstance(model.norm, CenterNorm)
        self.flat = model.config.pooling == "flat"
        as_matrix = self.center and not self.flat
        self.norm = Affine.of(model.norm).linear() if as_matrix else copy.deepcopy(model.norm).double()
        self.head = copy.deepcopy(model.head).double()

    def half_body(self) -> None:
        """Convert everything between the stem and the head to float16, except normalization, softmax and pooling."""
        self.float()
        self.body.half()
        self.last.half()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, C) of pixels (B, S, S, 3), 0 to 255."""
        x = pixels.to(self.stem.conv.weight.dtype)
        x = self.stem(x if self.mean is None else x - self.mean)
        x = self.body(x.to(self.last.fc1.weight.dtype))
        if self.flat:
            features = self.norm(widen(self.last(x))).flatten(1)
        elif self.center:  # all that follows the last GELU is linear: pool first
            trunk, hidden = self.last.hidden(x)
            features = self.norm(widen(self.last.output(pool(trunk), pool(hidden))))
        else:
            features = pool(self.norm(widen(self.last(x))))
        return self.head(features), features


def fold(model: LipsFormer, preprocessing: Preprocessing) -> FoldedLipsFormer:
    """Fold a trained network, in float64 and inference mode; `model` itself is unchanged.

    Up to rounding, it computes what `model` does with pixels normalized by `preprocessing`.

    Raises:
        TypeError: if the network has an unknown part.
    """
    with torch.no_grad():
        folded = FoldedLipsFormer(model, preprocessing)
    return folded.requires_grad_(False).eval()


def shares(residual: nn.Module) -> tuple[float, Tensor | None]:
    """The factor of x in a residual, and those of its branch, (C,) or (1,), float64; None for 1."""
    if isinstance(residual, ConvexResidual):
        alpha = torch.sigmoid(residual.logit.detach().double())
        return 1.0 - float(alpha), alpha
    return 1.0, residual.scale.detach().double() if isinstance(residual, ResidualScale) else None


def scaled(x: Tensor, factor: float) -> Tensor:
    """The product, without an operation if the factor is 1."""
    return x if factor == 1.0 else x * factor


def chain(model: LipsFormer) -> Iterator[FoldedBlock | nn.Module]:
    """The folded blocks and merges of all stages, in order."""
    for stage in model.layers:
        assert isinstance(stage, Stage)  # noqa: S101 - a ModuleList forgets the type
        for block in stage.blocks:
            assert isinstance(block, Block)  # noqa: S101
            yield FoldedBlock(block)
        if not isinstance(stage.downsample, nn.Identity):
            yield fold_merge(stage.downsample)


def fold_merge(merge: nn.Module) -> nn.Module:
    """Fold the merging between two stages.

    Raises:
        TypeError: for an unknown kind of merging.
    """
    if isinstance(merge, PatchMerging):
        return FoldedPatchMerging(merge)
    if isinstance(merge, ConvMerging):
        return ConvolutionThenNorm(merge.conv, merge.norm)
    raise TypeError(f"no folding for {type(merge).__name__}")


def pool(x: Tensor) -> Tensor:
    """Mean over the map: (B, H, W, C) to (B, C)."""
    return widen(x).mean(dim=(1, 2)).to(x.dtype)
