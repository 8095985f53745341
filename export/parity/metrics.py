"""Parity metrics: how far a candidate's logits and features are from the checkpoint's."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.runtimes import Logits, Outputs

__all__ = ["ParityMetrics", "accuracy", "relative_l2", "top1_agrees"]

TIE = 1e-5  # of the logits' norm: a lead within the rounding of float32, see `top1_agrees`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityMetrics:
    """Metrics of a candidate's logits, and of its features, against the checkpoint's.

    Attributes:
        relative_l2: the worst image's |candidate - checkpoint| / |checkpoint|, L2 norms over the classes.
        relative_l2_mean: its mean over the images.
        max_abs: the largest difference of any logit.
        cosine: the worst image's cosine of the angle between the two vectors of logits.
        kl: the worst image's Kullback-Leibler divergence of the candidate's softmax from the checkpoint's, in nats.
        top1_agreement: share of the images with the same top class, see `top1_agrees`.
        top5_agreement: mean share of the checkpoint's top five classes that are among the candidate's.
        features_relative_l2: as `relative_l2`, of the pooled features; None if there are none to compare with.
    """

    relative_l2: float
    relative_l2_mean: float
    max_abs: float
    cosine: float
    kl: float
    top1_agreement: float
    top5_agreement: float
    features_relative_l2: float | None

    @classmethod
    def of(cls, wanted: Outputs, found: Outputs) -> ParityMetrics:
        """Metrics of the checkpoint's outputs and the candidate's; values that are not finite give NaN."""
        a, b = wanted.logits.astype(np.float64), found.logits.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            errors = relative_l2(a, b)
            return cls(
                relative_l2=float(errors.max()),
                relative_l2_mean=float(errors.mean()),
                max_abs=float(np.abs(b - a).max()),
                cosine=float(_cosine(a, b).min()),
                kl=float(_divergence(a, b).max()),
                top1_agreement=float(top1_agrees(a, b).mean()),
                top5_agreement=float(_top5_shared(a, b).mean()),
                features_relative_l2=(
                    None
                    if wanted.features is None or found.features is None
                    else float(relative_l2(wanted.features, found.features).max())
                ),
            )


def relative_l2(wanted: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.float64]:
    """|found - wanted| / |wanted| of each row of (N, K), in float64."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    norms = np.maximum(np.linalg.norm(a, axis=1), np.finfo(np.float32).tiny)
    result: NDArray[np.float64] = np.linalg.norm(b - a, axis=1) / norms
    return result


def top1_agrees(wanted: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N,) whether both have the same top class.

    If the checkpoint's lead of one class over another is below 1e-5 of the logits' norm, rounding decides their order,
    and the checkpoint itself may rank them differently on another machine: then either counts as its top class. Logits
    that are not finite agree with nothing.
    """
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    rows = np.arange(len(a))
    lead = a.max(axis=1) - a[rows, b.argmax(axis=1)]
    agrees: NDArray[np.bool_] = (lead <= TIE * np.linalg.norm(a, axis=1)) & np.isfinite(b).all(axis=1)
    return agrees


def accuracy(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy of logits (N, K)."""
    return float((logits.argmax(axis=1) == labels).mean())


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return result


def _divergence(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    result: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(result, 0.0)  # rounding can make it negative


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _top5_shared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    best, others = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (a, b))
    result: NDArray[np.float64] = (best[:, :, None] == others[:, None, :]).any(axis=2).mean(axis=1)
    return result
