"""The spectral cap: after each step, every weight operator is put back to where its norm is at most the cap.

With convex residuals and MaxMin the Lipschitz constant of the features is then at most a power of the cap, whatever the
depth. The operators, and what holds them (all deterministic functions of the weights, without a state):

* linear layers, and queries, keys and values each: one Newton-Schulz step towards the nearest orthogonal matrix times
  the cap. It raises small singular values, too: a matrix that only is divided by its norm certifies far less.
* convolutions that mix channels: the same for the kernel as a matrix, divided by the root of how many patches share a
  pixel. That bounds the operator: a sum over patches of |W patch|**2 is at most |W|**2 times the patches' lengths.
* depthwise convolutions: each kernel is divided by its largest frequency response, if that is above the cap, on a torus
  that no kernel reaches around, whose convolution contains that of the zero-padded map.
* CenterNorm: its weight is clamped to (D - 1) / D times the cap.
* cosine attention with `learned_scales`: nu is lowered to where the bound of all heads together is the cap. Heads with
  LePE share the cap with it equally.

The head is free: certificates depend on the differences of its rows, whatever their size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipsformer.model.attention import ScaledCosineAttention
from lipsformer.model.blocks import DepthwiseConv2d, LipsFormer, Stage
from lipsformer.model.cswin import CrossShapedAttention, StripeAttention
from lipsformer.model.lipschitz.attention import term_factors
from lipsformer.model.norm import CenterNorm
from lipsformer.model.swin import WindowAttention
from lipsformer.system.errors import InputError

__all__ = ["SpectralCap", "orthogonalize"]

LARGEST_SQUARE = 2.9  # of a singular value: the step maps roots of up to 3 into 0..1


class Kernels(NamedTuple):
    """Depthwise kernels (C, 1, k, k) that read maps of `height` x `width`, and the largest norm of each."""

    weight: Tensor
    height: int
    width: int
    most: float


class Heads(NamedTuple):
    """Heads of an attention: `parts` in windows of so many tokens, and `window` if they have position biases."""

    parts: list[tuple[ScaledCosineAttention, int]]
    window: WindowAttention | None
    most: float


class SpectralCap:
    """Holds the operators of `model` at `cap`. Weights that are frozen when it is made are left alone.

    Raises:
        InputError: if the network has LayerNorms, which have no such cap.
    """

    def __init__(self, model: LipsFormer, cap: float) -> None:
        if model.config.norm == "layer":
            raise InputError("spectral_cap: LayerNorm cannot be held below a cap; set model.norm to 'center'")
        self.cap = cap
        matrices = [(weight, most) for weight, most in self._matrices(model) if weight.requires_grad]
        self.matrices: dict[tuple[torch.Size, float], list[Tensor]] = defaultdict(list)
        for weight, most in matrices:
            self.matrices[weight.shape, most].append(weight.detach())
        self.kernels = [kernels for kernels in self._kernels(model) if kernels.weight.requires_grad]
        self.gains = [
            (module.weight, cap * (module.dim - 1) / module.dim)
            for module in model.modules()
            if isinstance(module, CenterNorm) and module.weight.requires_grad
        ]
        self.heads = [heads for heads in self._heads(model) if all(_learns(part) for part, _ in heads.parts)]

    def _matrices(self, model: LipsFormer) -> Iterator[tuple[Tensor, float]]:
        """The weights that are held as matrices (out, in), and the largest norm of each."""
        for name, module in model.named_modules():
            if name.endswith(".attn.qkv"):
                yield from ((part, self.cap) for part in module.weight.chunk(3))
            elif isinstance(module, nn.Linear) and module is not model.head:
                yield module.weight, self.cap
            elif isinstance(module, nn.Conv2d) and module.groups == 1:
                down, right = (-(-size // step) for size, step in zip(module.kernel_size, module.stride, strict=True))
                yield module.weight.flatten(1), self.cap / (down * right) ** 0.5

    def _kernels(self, model: LipsFormer) -> Iterator[Kernels]:
        for stage, side in _stages(model):
            for module in stage.modules():
                if isinstance(module, StripeAttention):
                    yield Kernels(module.lepe.weight, module.height, module.width, self.cap / 2)
            for block in stage.blocks:
                for layer in block.dwconv_layers:  # type: ignore[union-attr]
                    assert isinstance(layer, DepthwiseConv2d)  # noqa: S101 - a ModuleList forgets the type
                    yield Kernels(layer.weight, side, side, self.cap)

    def _heads(self, model: LipsFormer) -> Iterator[Heads]:
        for module in model.modules():
            if isinstance(module, WindowAttention) and isinstance(module.similarity, ScaledCosineAttention):
                yield Heads([(module.similarity, module.window**2)], module, self.cap)
            elif isinstance(module, CrossShapedAttention):
                stripes = [stripe for stripe in module.stripes if isinstance(stripe, StripeAttention)]
                if all(isinstance(stripe.similarity, ScaledCosineAttention) for stripe in stripes):
                    parts = [(stripe.similarity, stripe.height * stripe.width) for stripe in stripes]
                    yield Heads(parts, None, self.cap / 2)  # type: ignore[arg-type]

    @torch.no_grad()
    def start(self) -> None:
        """Puts any weights below the cap: matrices become the nearest orthogonal ones times their largest norm."""
        for (_, most), weights in self.matrices.items():
            for weight in weights:
                left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
                weight.copy_(most * (left @ right))
        self._hold_others()

    @torch.no_grad()
    def hold(self) -> None:
        """Puts the weights back below the cap after a step of the optimizer."""
        for (_, most), weights in self.matrices.items():
            held = orthogonalize(torch.stack(weights) / most).mul_(most)
            for weight, value in zip(weights, held, strict=True):
                weight.copy_(value)
        self._hold_others()

    def _hold_others(self) -> None:
        for kernels in self.kernels:
            weight, size = kernels.weight, kernels.weight.shape[-1]
            torus = [max(side + size // 2, size) for side in (kernels.height, kernels.width)]
            response = torch.fft.rfft2(weight.double(), s=torus).abs().amax(dim=(1, 2, 3), keepdim=True)
            weight.div_((response / kernels.most).clamp_min(1.0).to(weight.dtype))
        for gain, most in self.gains:
            gain.clamp_(-most, most)
        for heads in self.heads:
            self._hold_heads(heads)

    def _hold_heads(self, heads: Heads) -> None:
        """Lowers nu of all heads by one factor, if they are above the cap together.

        With w_k the share of a term in the sum, their bound is the root of sum_k max_h nu_h**2 |A_kh| sum_j |A_jh|.
        """
        bias = None if heads.window is None else position_bias(heads.window).cpu()
        scales, squares = [], []
        for similarity, tokens in heads.parts:
            tau = torch.as_tensor(similarity.temperature).detach().abs().flatten().cpu()
            terms = self.cap * similarity.epsilon**-0.5 * factors(tau, tokens, bias)  # (3, heads)
            scales.append(torch.as_tensor(similarity.value_scale).detach())
            squares.append(scales[-1].double().flatten().cpu() ** 2 * terms.sum(dim=0) * terms)
        bound = float(torch.cat(squares, dim=1).amax(dim=1).sum().sqrt())
        for nu in scales:
            nu.mul_(min(1.0, heads.most / max(bound, 1e-300)))


def orthogonalize(matrices: Tensor) -> Tensor:
    """One Newton-Schulz step of matrices (N, m, n) towards orthogonal ones; no singular value of the result is above 1.

    s -> 1.5 s - 0.5 s**3 is at most 1 for s up to the root of 3 and doubles the digits near 1. A matrix that is larger
    is shrunk first: the largest row sum of its Gram matrix bounds its square.
    """
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    gram = x @ x.mT
    square = gram.abs().sum(dim=-1).amax(dim=-1)[:, None, None]
    factor = (LARGEST_SQUARE / square.clamp_min(LARGEST_SQUARE)).sqrt()
    x = torch.baddbmm(1.5 * factor * x, -0.5 * factor**3 * gram, x)
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def factors(tau: Tensor, tokens: int, bias: Tensor | None) -> Tensor:
    """`term_factors`, of single tokens too: their softmax is 1."""
    if tokens == 1:
        return torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand(3, len(tau))
    return term_factors(tau, tokens, bias)


def position_bias(window: WindowAttention) -> Tensor:
    """What is added to the scores, masks included, float64."""
    bias = window.position_bias().detach().double()
    return bias + window.mask.double() if window.shift else bias


def _stages(model: LipsFormer) -> Iterator[tuple[Stage, int]]:
    for index, stage in enumerate(model.layers):
        assert isinstance(stage, Stage)  # noqa: S101 - a ModuleList forgets the type
        yield stage, model.config.resolution(index)


def _learns(similarity: ScaledCosineAttention) -> bool:
    return isinstance(similarity.value_scale, nn.Parameter) and similarity.value_scale.requires_grad
