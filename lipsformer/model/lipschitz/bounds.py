"""Upper bounds of Lipschitz constants, for every layer and for a network of either form with any components.

All norms are Euclidean, over all entries of a map, from normalized images to logits, and the domain is every input.
`Bound.log10` is a decimal logarithm because the constants themselves overflow.

Composition rules (Lip is the smallest constant, L a bound of it):

* a sequence: Lip(g after f) <= L(g) L(f);
* a residual: Lip(x + alpha f(x)) <= 1 + Lip(alpha f), with each alpha folded into its branch's last matrix;
* a convex residual: Lip((1 - alpha) x + alpha f(x)) <= (1 - alpha) + alpha Lip(f);
* stochastic depth is the identity, as in evaluation.

The bound of each layer:

* linear layers: exact (`spectral_norm`);
* convolutions at their true resolution, with padding and stride: exact on small maps, else a true bound (see
  `convolution_norms`);
* CenterNorm, diag(w) (I - 11^T/D) D/(D-1): exact. The simple bound D/(D-1) max|w| is never smaller;
* LayerNorm: exact, |diag(w) (I - 11^T/D)| / sqrt(eps): its derivative is diag(w) C (I - z z^T/D) C / sqrt(var + eps)
  with C = I - 11^T/D and |z|**2 <= D, and var = 0 at constant inputs. The paper calls LayerNorm unbounded, as it
  is for eps = 0; the eps of 1e-5 makes each one cost a factor of 316;
* MaxMin: 1, since its derivative is a permutation. Scales of channels do not commute with it, but those of pairs do;
* GELU, x Phi(x): exact, the largest slope, at sqrt(2): Phi(sqrt 2) + sqrt(2) phi(sqrt 2) = 1.12890...;
* cosine attention with normalized values: a theorem, with its proof in `attention.py`;
* attention with plain values or dot products has no bound (Kim, Papamakarios and Mnih 2021), and neither has a
  network that contains it, unless its windows are single tokens, whose softmax is 1.

Everything is computed in float64 from the weights; `ROUNDING` covers its errors. The numbers hold for the network in
real arithmetic; in float32 it adds rounding noise to its outputs, which is not a slope.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lipsformer.model.activation import MaxMin
from lipsformer.model.blocks import Block, LipsFormer, PatchEmbed, Stage
from lipsformer.model.cswin import CrossShapedAttention, StripeAttention
from lipsformer.model.norm import CenterNorm
from lipsformer.model.residual import ConvexResidual, ResidualScale
from lipsformer.model.swin import WindowAttention

from .attention import attention_bound, heads_of, paper_bound
from .convolution import convolution_norm_estimate, convolution_norms
from .spectral import spectral_norm

__all__ = [
    "GELU_SLOPE",
    "LEAST",
    "Bound",
    "bound_attention",
    "bound_block",
    "bound_features",
    "bound_layer",
    "bound_network",
    "flatten",
]

Attention = WindowAttention | CrossShapedAttention

GELU_SLOPE = (1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi)
ROUNDING = 1e-9  # added to each logarithm: float64 leaves errors of about 1e-12
LEAST = 1e-300  # instead of 0, which has no logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound of the Lipschitz constant of one part of a network, and the bounds of its parts.

    `log10` is None if there is no bound, and `reason` says why. `details` holds numbers that explain it: for a
    convolution `norm_log10`, the bound of its norm, and `power_iteration_log10`, an estimate from below; for
    attention `tokens` in the largest window, `epsilon`, the largest `temperature` and `value_scale`, and `paper_log10`,
    the bound with the paper's theorem instead of ours.
    """

    name: str
    log10: float | None
    reason: str | None = None
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    parts: tuple[Bound, ...] = ()


def bound_network(model: LipsFormer) -> Bound:
    """The bound of `model` from normalized images to logits.

    Its parts are the embedding, the stages (blocks, then the merging), the pooling and the head.
    """
    return _sequence("network", [*bound_features(model).parts, bound_layer(model.head, "head")])


def bound_features(model: LipsFormer, std: Sequence[float] | None = None) -> Bound:
    """The bound of `model` from normalized images to the features that the head reads.

    With `std`, what the preprocessing divides colors by, it is that from pixels in 0..1: the division is taken together
    with the embedding, of which it is a part.
    """
    config = model.config
    stages = [
        _bound_stage(cast(Stage, stage), config.resolution(index), index + 1)
        for index, stage in enumerate(model.layers)
    ]
    # the mean, exact: rows of length 1 / sqrt(tokens) that share no input
    pool = 1.0 if config.pooling == "flat" else 1 / config.resolution(config.last_stage)
    pooling = _sequence("pooling", [bound_layer(model.norm, "norm"), _bound(config.pooling, pool)])
    embed = model.patch_embed if std is None else _of_pixels(cast(PatchEmbed, model.patch_embed), std)
    embedding = _bound_layers("embedding", embed, config.image_size)
    return _sequence("features", [embedding, *stages, pooling])


def _of_pixels(embed: PatchEmbed, std: Sequence[float]) -> PatchEmbed:
    """The embedding with the division by `std` in its convolution, in float64."""
    embed = copy.deepcopy(embed).double()
    with torch.no_grad():
        embed.proj.weight /= torch.tensor(std, dtype=torch.float64)[:, None, None]
    return embed


def flatten(network: Bound) -> list[Bound]:
    """The steps of `bound_network`'s result in order: embedding, each block, each merging, pooling, head."""
    embedding, *stages, pooling, head = network.parts
    return [embedding, *itertools.chain(*(stage.parts for stage in stages)), pooling, head]


def bound_block(block: Block, side: int, name: str = "block") -> Bound:
    """The bound of a block on maps of `side` x `side` tokens; those of its branches include their alpha."""
    convolutions = [_bound_convolution(block, index, side) for index in range(len(block.dwconv_layers))]
    attention = bound_attention(cast(Attention, block.attn), _alpha(block.alpha1))
    mlp = _bound_mlp(block)
    alphas = (*block.scale_layers, block.alpha1, block.alpha2)
    *skips, skip1, skip2 = map(_skip, alphas)
    norm1, norm2 = bound_layer(block.norm1, "norm 1"), bound_layer(block.norm2, "norm 2")
    steps = [_residual(branch, skip) for branch, skip in zip(convolutions, skips, strict=True)]
    for branch, norm, skip in ((attention, norm1, skip1), (mlp, norm2, skip2)):
        if block.pre_norm:
            steps.append(_residual(_sequence(branch.name, [norm, branch]), skip))
        else:
            steps += [_residual(branch, skip), norm]
    whole = _sequence(name, steps)
    reason = whole.reason and f"{name}: {whole.reason}"
    return dataclasses.replace(whole, reason=reason, parts=(*convolutions, attention, norm1, mlp, norm2))


def bound_attention(attention: Attention, alpha: Tensor | None = None) -> Bound:
    """The bound of alpha * attention(x), for the attention of either form; `alpha` (C,) is 1 by default.

    The heads' outputs (`attention_bound`) and LePE, which convolves each channel of the plain values, are added; the
    projection follows.
    """
    groups = heads_of(attention)
    for heads in groups:
        if heads.unbounded:
            return Bound(name="attention", log10=None, reason=heads.unbounded)
    projection = attention.proj.weight.detach().double()
    output = spectral_norm(projection if alpha is None else alpha[:, None] * projection)
    lepe = _lepe_norm(attention) if isinstance(attention, CrossShapedAttention) else 0.0
    details = {
        "tokens": max(heads.tokens for heads in groups),
        "epsilon": groups[0].epsilon,
        "temperature": max(float(heads.temperature.max()) for heads in groups),
        "value_scale": max(float(heads.value_scale.max()) for heads in groups),
    }
    if groups[0].value_norm:
        details["paper_log10"] = _log10(output * (paper_bound(groups) + lepe))
    return _bound("attention", output * (attention_bound(groups) + lepe), **details)


def _lepe_norm(attention: CrossShapedAttention) -> float:
    """The norm of the map from tokens to LePE: each channel of the values, then its convolution within windows."""
    stripes = (cast(StripeAttention, stripe) for stripe in attention.stripes)
    channels = torch.cat([convolution_norms(stripe.lepe, stripe.height, stripe.width) for stripe in stripes])
    values = attention.qkv.weight.detach().double()[-len(channels) :]
    return spectral_norm(channels[:, None] * values)


def _bound_convolution(block: Block, index: int, side: int) -> Bound:
    """alpha * act(A act(w * x)) for the first branch, with A the 1x1 convolution; alpha * act(w * x) for the second.

    The depthwise convolution acts on each channel alone and GELU on each number alone, so channel scales commute
    with the slopes of GELU: alpha and the channels' norms go into the matrix between them. MaxMin exchanges channels c
    and c + C / 2, so both get the larger of their two scales.
    """
    layer = cast(nn.Conv2d, block.dwconv_layers[index])
    alpha, norms = _alpha(block.scale_layers[index]), convolution_norms(layer, side, side)
    slope, channels = _slope(block), norms
    if isinstance(block.activation, MaxMin):
        alpha, channels = (_larger_of_pairs(scales) for scales in (alpha, norms))
    if index == 0:
        mixing = block.nin.weight.detach().double().flatten(1)
        value = slope**2 * spectral_norm(alpha[:, None] * mixing * channels)
    else:
        value = slope * float((alpha * channels).abs().max())
    return _bound(f"convolution {index + 1}", value, **_convolution_details(layer, norms, side))


def _larger_of_pairs(scales: Tensor) -> Tensor:
    """For each channel the larger magnitude of its pair's scales, c and c + C / 2; a single scale stays as it is."""
    return scales.abs() if len(scales) == 1 else scales.abs().reshape(2, -1).amax(dim=0).repeat(2)


def _slope(block: Block) -> float:
    return 1.0 if isinstance(block.activation, MaxMin) else GELU_SLOPE


def _bound_mlp(block: Block) -> Bound:
    first, second = (layer.weight.detach().double() for layer in (block.mlp.fc1, block.mlp.fc2))
    return _bound("mlp", _slope(block) * spectral_norm(_alpha(block.alpha2)[:, None] * second) * spectral_norm(first))


def _alpha(scale: nn.Module) -> Tensor:
    """The factors of a residual branch: (C,), or (1,) for a plain or a convex one."""
    if isinstance(scale, ConvexResidual):
        return torch.sigmoid(scale.logit.detach().double())
    return scale.scale.detach().double() if isinstance(scale, ResidualScale) else torch.ones(1, dtype=torch.float64)


def _skip(residual: nn.Module) -> float:
    """The factor of x in a residual: 1, or 1 - alpha for a convex one."""
    return 1.0 - float(_alpha(residual)) if isinstance(residual, ConvexResidual) else 1.0


def _bound_stage(stage: Stage, side: int, number: int) -> Bound:
    blocks = enumerate(stage.blocks, start=1)
    parts = [bound_block(cast(Block, block), side, f"stage {number}, block {index}") for index, block in blocks]
    if not isinstance(stage.downsample, nn.Identity):
        parts.append(_bound_layers(f"stage {number}, merging", stage.downsample, side))
    return _sequence(f"stage {number}", parts)


def _bound_layers(name: str, module: nn.Module, side: int) -> Bound:
    """The bound of an embedding or a merging, which applies each of its layers once and nothing else that stretches."""
    return _sequence(name, [bound_layer(layer, kind, side) for kind, layer in module.named_children()])


def bound_layer(layer: nn.Module, name: str, side: int = 1) -> Bound:
    """The bound of a linear layer or norm, or of a convolution of maps of `side` x `side`."""
    if isinstance(layer, nn.Conv2d):
        norms = convolution_norms(layer, side, side)
        return _bound(name, float(norms.max()), **_convolution_details(layer, norms, side))
    if isinstance(layer, nn.Linear):
        return _bound(name, spectral_norm(layer.weight))
    assert isinstance(layer, CenterNorm | nn.LayerNorm)  # noqa: S101 - there are no others
    weight = layer.weight.detach().double()
    centring = torch.eye(len(weight), dtype=torch.float64) - 1 / len(weight)
    factor = len(weight) / (len(weight) - 1) if isinstance(layer, CenterNorm) else layer.eps**-0.5
    return _bound(name, factor * spectral_norm(weight[:, None] * centring))


def _convolution_details(layer: nn.Conv2d, norms: Tensor, side: int) -> dict[str, float]:
    estimate = convolution_norm_estimate(layer, side, side)
    return {"norm_log10": _log10(float(norms.max())), "power_iteration_log10": _log10(estimate) - ROUNDING}


def _bound(name: str, value: float, **details: float) -> Bound:
    return Bound(name=name, log10=_log10(value), details=details)


def _log10(value: float) -> float:
    return math.log10(max(value, LEAST)) + ROUNDING


def _sequence(name: str, parts: Sequence[Bound]) -> Bound:
    """The product of the bounds of `parts`, or the first reason why there is none."""
    for part in parts:
        if part.log10 is None:
            return Bound(name=name, log10=None, reason=part.reason, parts=tuple(parts))
    return Bound(name=name, log10=math.fsum(part.log10 or 0.0 for part in parts), parts=tuple(parts))


def _residual(branch: Bound, skip: float) -> Bound:
    """The bound of skip * x + branch(x), without overflow."""
    if branch.log10 is None:
        return branch
    own = _log10(skip)
    larger, smaller = max(own, branch.log10), min(own, branch.log10)
    return dataclasses.replace(branch, log10=larger + math.log10(1 + 10 ** (smaller - larger)))
