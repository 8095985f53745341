"""Two upper bounds of the Lipschitz constant of scaled cosine similarity attention, with assumptions and a proof.

One head maps X (N, C) to Y = nu * P V, where the rows of Q, K and V, q_i = u(Wq x_i + b) and so on, are normalized by
u(z) = z / sqrt(|z|**2 + epsilon), and P = softmax(tau * Q K^T + B) row by row. Norms of maps (N, C) -> (N, d) are those
of Frobenius, the Euclidean norms of all entries; |W| is the largest singular value. Biases, position biases and masks
are constants, so no bound depends on them; shifted or not, windows partition the tokens, so that the bound for one
window holds for the map; N is the number of tokens of a window.

Theorem 1 of the paper (LipsFormer, section 4.1.2) for one head:

    L <= 2 N (N-1) nu tau epsilon**-1/2 |Wk| + 2 (N-1) nu tau epsilon**-1/2 |Wq| + 2 N nu epsilon**-1/2 |Wv|

Theorem, ours. For N >= 2

    L <= nu epsilon**-1/2 (tau |Wq| + tau sqrt(N/2) |Wk| + sqrt(N) |Wv|)

and L <= nu epsilon**-1/2 |Wv| for N = 1. It is at most the paper's for all N, term by term.

Refinement, ours. The cosines lie in [-1, 1], so a query's share for a key is bounded: with the position biases and
masks B,

    p_ij <= m_ij = 1 / (1 + exp(-2 tau) sum_{l != j} exp(B_il - B_ij)),

which is attained at cosine 1 for key j and -1 for all others. N may be replaced by the largest column sum of m, and
N/2 by the largest column sum of g(m), g(p) = 2 p (1 - p) up to p = 1/2 and 1/2 from there. With N = 16, tau = 0.25 and
no bias, N is replaced by 1.59 and N/2 by 2.86; for tau >= 10 hardly anything changes, since one key may get it all.

Proof. Everything is smooth (epsilon > 0) and the domain is convex, so L is the supremum of the derivative's norm.
u'(z) = (I - z z^T / (|z|**2 + epsilon)) / sqrt(|z|**2 + epsilon) has norm <= epsilon**-1/2, and |u| < 1. With dQ, dK
and dV the derivatives of the normalized rows along dX, |dQ| <= epsilon**-1/2 |Wq dX^T|, and so on. Write E_i for the
mean with the weights p_i1 ... p_iN, and m_i = E_i v. As dp_ij = tau p_ij (ds_ij - E_i ds_i) for the cosines s = q . k,

    dy_i / nu = tau Cov_i(v, k) dq_i + tau sum_j p_ij (q_i . dk_j) (v_j - m_i) + sum_j p_ij dv_j.

1. a . Cov_i(v, k) b <= sqrt(Var_i(a . v) Var_i(b . k)) <= 1 for unit a and b, as |a . v|, |b . k| <= 1: the first term
   has norm <= tau |dQ|.
2. The second has norm <= tau |M r| with r_j = |dk_j| and M_ij = p_ij |v_j - m_i| >= 0. A row of M sums to
   E_i |v - m_i| <= sqrt(E_i |v|**2) <= 1. An entry is p (1 - p) |v_j - the mean of the others| <= 2 p (1 - p) <= 1/2,
   so a column sums to N/2 at most. By Schur's test |M| <= sqrt(N/2), and |r| = |dK|. Refined: 2 p (1 - p) rises up to
   p = 1/2, so the entry is at most g(m_ij), and the column sums at most to that of g(m).
3. P has rows of sum 1 and columns of sum <= N: |P dV| <= sqrt(N) |dV| by Schur's test. Refined: p_ij <= m_ij.

For N = 1, P = 1, and only the third term is left. QED. Each of the three constants is the least possible: the tests
come as close to it as they like, one matrix at a time.

Many heads. Let A1 = tau Wq, A2 = tau sqrt(N/2) Wk, A3 = sqrt(N) Wv of a head, with N and N/2 refined as above, and
weights w_k > 0 with sum 1. Then
(sum_k |A_k dX^T|)**2 <= sum_k |A_k dX^T|**2 / w_k by Cauchy and Schwarz, and heads write to different channels, so

    L(all heads) <= epsilon**-1/2 |S|,  S the rows nu A_k / sqrt(w_k) of all three matrices of all heads,

one matrix norm that knows that they read different directions. With w_k = |A_k| / sum |A| it is at most the root of
the sum of squares of the heads' own bounds. That root is what the paper's theorem, for one head, is extended by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lipsformer.model.attention import ScaledCosineAttention
from lipsformer.model.cswin import CrossShapedAttention, StripeAttention
from lipsformer.model.swin import WindowAttention

from .spectral import spectral_norm, spectral_norms

__all__ = ["Heads", "attention_bound", "heads_of", "largest_shares", "paper_bound", "term_factors"]


DOT_PRODUCT = "dot-product attention is not Lipschitz; attention='cosine' with value_norm is"
PLAIN_VALUES = "cosine attention of plain values is not Lipschitz; with value_norm it is"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads that attend in windows of `tokens` tokens: everything their bounds depend on.

    `query`, `key` and `value` are the matrices (heads, d, C) of the projections. `temperature` (tau) and `value_scale`
    (nu) are the magnitudes, (heads,). `position_bias` is added to the scores: (heads, N, N), (windows, heads, N, N) if
    windows differ, or None. All are float64. `unbounded` says why there is no bound; None if there is one.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    temperature: Tensor
    value_scale: Tensor
    position_bias: Tensor | None
    value_norm: bool
    epsilon: float
    tokens: int
    unbounded: str | None


def heads_of(attention: WindowAttention | CrossShapedAttention) -> list[Heads]:
    """The heads of an attention, grouped by the windows that they attend in."""
    if isinstance(attention, WindowAttention):
        groups = [(attention.similarity, attention.num_heads, attention.window**2)]
        bias = attention.position_bias().detach().double()
        bias = bias + attention.mask.double() if attention.shift else bias
    else:
        stripes = (cast(StripeAttention, stripe) for stripe in attention.stripes)
        groups = [(stripe.similarity, stripe.num_heads, stripe.height * stripe.width) for stripe in stripes]
        bias = None
    counts = [count for _, count, _ in groups]
    qkv = attention.qkv.weight.detach().double()
    weights = qkv.reshape(3, sum(counts), -1, qkv.shape[1])  # (3, heads, d, C)
    parts = zip(groups, torch.split(weights, counts, dim=1), strict=True)
    return [_heads(similarity, part, tokens, bias) for (similarity, _, tokens), part in parts]


def _heads(similarity: nn.Module, weights: Tensor, tokens: int, bias: Tensor | None) -> Heads:
    query, key, value = weights
    tau: Tensor | float = 1.0
    nu: Tensor | float = 1.0
    value_norm, epsilon, unbounded = False, 1.0, DOT_PRODUCT
    if isinstance(similarity, ScaledCosineAttention):
        tau, nu = similarity.temperature, similarity.value_scale
        value_norm, epsilon, unbounded = similarity.value_norm, similarity.epsilon, PLAIN_VALUES
    return Heads(
        query=query,
        key=key,
        value=value,
        temperature=_magnitudes(tau, len(query)),
        value_scale=_magnitudes(nu, len(query)),
        position_bias=bias,
        value_norm=value_norm,
        epsilon=epsilon,
        tokens=tokens,
        unbounded=None if value_norm or tokens == 1 else unbounded,  # the softmax of a single token is 1
    )


def _magnitudes(scale: Tensor | float, heads: int) -> Tensor:
    """Magnitudes (heads,) of a constant, or of a parameter (heads, 1, 1)."""
    return torch.as_tensor(scale, dtype=torch.float64).detach().abs().flatten().expand(heads)


def attention_bound(groups: Sequence[Heads]) -> float:
    """Our theorem's bound |S| for heads that read the same tokens and write to different channels.

    The groups may split the tokens into different windows: each is bounded by its rows of S, for all tokens.
    """
    return spectral_norm(torch.cat([_stacked(heads) for heads in groups]))


def paper_bound(groups: Sequence[Heads]) -> float:
    """Theorem 1 of the paper for each head, combined as the root of the sum of squares."""
    squares = 0.0
    for heads in groups:
        query, key, value = (spectral_norms(matrix) for matrix in (heads.query, heads.key, heads.value))
        n = heads.tokens
        scores = heads.temperature * (2 * n * (n - 1) * key + 2 * (n - 1) * query)
        bounds = heads.value_scale * heads.epsilon**-0.5 * (scores + 2 * n * value)
        squares += float(bounds.square().sum())
    return math.sqrt(squares)


def _stacked(heads: Heads) -> Tensor:
    """The rows of S, times epsilon**-1/2: (rows, C)."""
    scale = heads.value_scale[:, None, None]
    if heads.tokens == 1:  # its softmax is 1
        return (heads.value * scale * (heads.epsilon**-0.5 if heads.value_norm else 1.0)).flatten(0, 1)
    factors = term_factors(heads.temperature, heads.tokens, heads.position_bias)  # (3, heads)
    parts = factors[..., None, None] * torch.stack([heads.query, heads.key, heads.value])  # (3, heads, d, C)
    norms = spectral_norms(parts).clamp_min(1e-100)  # a zero matrix has a share, too
    shares = norms / norms.sum(dim=0)
    rows: Tensor = parts * (scale * heads.epsilon**-0.5) / shares[..., None, None].sqrt()
    return rows.flatten(0, 2)


def term_factors(temperature: Tensor, tokens: int, bias: Tensor | None) -> Tensor:
    """What multiplies |Wq|, |Wk| and |Wv| in the refined theorem, without nu epsilon**-1/2: (3, heads), float64.

    Args:
        temperature: magnitudes (heads,).
        tokens: N, at least 2.
        bias: position biases and masks, (..., heads, N, N), or None for zeros.
    """
    tau = temperature.double()
    if bias is None:
        bias = torch.zeros(len(tau), 1, tokens, dtype=torch.float64)  # a row that stands for N equal ones
    shares = largest_shares(tau, bias)
    moves = torch.where(shares < 0.5, 2 * shares * (1 - shares), 0.5)
    columns = [sums.sum(dim=-2).amax(dim=-1) * (tokens / sums.shape[-2]) for sums in (moves, shares)]
    while columns[0].ndim > 1:  # windows that differ
        columns = [column.amax(dim=0) for column in columns]
    return torch.stack([tau, tau * columns[0].sqrt(), columns[1].sqrt()])


def largest_shares(tau: Tensor, bias: Tensor) -> Tensor:
    """How much of its attention a query can give to each key, m of the refinement: (..., heads, rows, N).

    Args:
        tau: temperatures (heads,).
        bias: position biases and masks of the same shape, float64.
    """
    weights = torch.exp(bias - bias.amax(dim=-1, keepdim=True))
    others = (weights.sum(dim=-1, keepdim=True) - weights).clamp_min(0) * torch.exp(-2 * tau)[:, None, None]
    total = weights + others
    return torch.where(total > 0, weights / total.clamp_min(1e-300), 1.0).clamp_max(1.0)
