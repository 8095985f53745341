"""Multinomial logistic regression with an L2 penalty: a softmax head fitted to convergence, on the full batch."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Head", "Samples", "fit_head"]

MAX_ITERATIONS = 1000
LARGEST_GRADIENT = 1e-5  # at which a fit has converged: its loss is then about 1e-7 above the lowest
# A little of a penalty on the biases, so that the bias of a class without images stays finite.
BIAS_PENALTY = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Features (N, C) float64, labels (N,) int64 and weights (N,) float64; `classes` in all.

    The features are uncorrelated and centered, with the `variances` (C,), or nearly so: the closer, the faster the fit.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor
    variances: Tensor
    classes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The layer features @ weight.T + bias: weight (K, C), bias (K,), float64.

    `iterations` of L-BFGS led to it, and `converged` says whether they were enough.
    """

    weight: Tensor
    bias: Tensor
    iterations: int = 0
    converged: bool = True

    def logits(self, features: Tensor) -> Tensor:
        """Maps features (N, C) to logits (N, K)."""
        return features @ self.weight.T + self.bias


def fit_head(
    samples: Samples,
    penalty: float,
    *,
    label_smoothing: float = 0.0,
    start: Head | None = None,
    largest_gradient: float = LARGEST_GRADIENT,
) -> Head:
    """The head with the least weighted cross entropy + `penalty` / 2 * sum of the squared weights.

    The problem is strictly convex, so `start` changes the time and not the result. No entry of the gradient is above
    `largest_gradient` at the end. By L-BFGS with a strong Wolfe line
    search (Nocedal and Wright, chapter 7), on weights divided by about the root of the curvature along each feature.
    """
    features = samples.features
    scales = (samples.variances / samples.classes + penalty).rsqrt()
    weight = features.new_zeros(samples.classes, len(scales)) if start is None else start.weight / scales
    bias = features.new_zeros(samples.classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        tolerance_grad=largest_gradient,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = scales * weight
        logits = F.linear(features, scaled, bias)
        losses = F.cross_entropy(logits, samples.labels, reduction="none", label_smoothing=label_smoothing)
        loss = losses @ samples.weights + penalty / 2 * scaled.square().sum() + BIAS_PENALTY / 2 * bias.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    largest = max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None)
    return Head(
        weight=scales * weight.detach(),
        bias=bias.detach(),
        iterations=int(optimizer.state[weight]["n_iter"]),
        converged=largest <= largest_gradient,
    )
