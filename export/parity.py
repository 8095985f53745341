"""The parity gate: an exported graph is published only if it answers as its checkpoint does, on real images.

The checkpoint answers one image at a time; the candidate answers the same images at batch 1, 3 and the maximum. So a
graph whose batch size was frozen by the trace, or whose answers depend on an image's neighbours, cannot pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.errors import InputError
from lipsformer.prediction import softmax
from lipsformer.runtimes import Logits, Pixels, Runtime

__all__ = ["BatchParity", "ParityReport", "Thresholds", "check_parity", "one_at_a_time"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a candidate must reach: the worst image's relative L2 error of the logits, and the share of equal top-1."""

    relative_l2: float = 1e-5
    top1_agreement: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchParity:
    """Figures at one batch size over all images; `error` says why the candidate gave no usable answer."""

    batch: int
    relative_l2: float | None = None
    max_abs: float | None = None
    max_score_difference: float | None = None
    top1_agreement: float | None = None
    error: str | None = None

    def failure(self, thresholds: Thresholds) -> str | None:
        """Why this batch size fails the gate, or None where it passes."""
        if self.error is not None:
            return f"batch {self.batch}: {self.error}"
        if not (self.relative_l2 is not None and self.relative_l2 <= thresholds.relative_l2):  # catches NaN too
            return f"batch {self.batch}: relative L2 error {self.relative_l2:.3g} exceeds {thresholds.relative_l2:g}"
        if self.top1_agreement is None or self.top1_agreement < thresholds.top1_agreement:
            return f"batch {self.batch}: only {self.top1_agreement:.2%} have the same top-1"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The gate's verdict on one runtime: it passed if `failures` is empty."""

    runtime: str
    images: int
    source: str
    thresholds: Thresholds
    batches: tuple[BatchParity, ...]

    @property
    def failures(self) -> list[str]:
        """What failed, one sentence each."""
        return [failure for batch in self.batches if (failure := batch.failure(self.thresholds))]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the verdict included."""
        return {"passed": not self.failures, "failures": self.failures, **dataclasses.asdict(self)}

    def to_text(self) -> str:
        """The report for people, as a Markdown table."""
        lines = [
            f"Parity on {self.runtime}: {'PASSED' if not self.failures else 'FAILED'}",
            "",
            f"{self.images} images ({self.source}), each compared with the checkpoint's own answer to it alone.",
            "",
            "| batch | relative L2 | max abs logit | max score | same top-1 |",
            "|------:|------------:|--------------:|----------:|-----------:|",
        ]
        for row in self.batches:
            if row.error is not None:
                lines.append(f"| {row.batch:5} | {row.error} |")
            else:
                lines.append(
                    f"| {row.batch:5} | {row.relative_l2:11.2e} | {row.max_abs:13.2e} "
                    f"| {row.max_score_difference:9.2e} | {row.top1_agreement:10.2%} |"
                )
        limits = self.thresholds
        lines += ["", f"Needed: relative L2 <= {limits.relative_l2:g}, same top-1 >= {limits.top1_agreement:.2%}."]
        return "\n".join([*lines, *(f"- {failure}" for failure in self.failures)])


def one_at_a_time(runtime: Runtime, pixels: Pixels) -> Logits:
    """The runtime's logits (N, K) of images (N, S, S, 3), each computed alone."""
    return np.concatenate([runtime.infer(pixels[i : i + 1]) for i in range(len(pixels))])


def check_parity(
    candidate: Runtime,
    reference: Logits,
    pixels: Pixels,
    *,
    batches: Sequence[int],
    source: str,
    thresholds: Thresholds | None = None,
) -> ParityReport:
    """Compares a candidate's logits with the reference's at each batch size.

    Args:
        candidate: the runtime under test.
        reference: the checkpoint's logits (N, K), from `one_at_a_time`.
        pixels: the images (N, S, S, 3), at least as many as the largest batch.
        batches: the batch sizes to run; N is cut into that many images, the rest filled from the start again.
        source: where the images come from, for the report.
        thresholds: what to reach; by default float32's.

    Raises:
        InputError: if there are fewer images than the largest batch.
    """
    if len(pixels) < max(batches):
        raise InputError(f"{source}: {len(pixels)} images, parity at batch {max(batches)} needs as many; give more")
    return ParityReport(
        runtime=candidate.provider,
        images=len(pixels),
        source=source,
        thresholds=thresholds or Thresholds(),
        batches=tuple(_compare(candidate, reference, pixels, batch) for batch in batches),
    )


def _compare(candidate: Runtime, reference: Logits, pixels: Pixels, batch: int) -> BatchParity:
    try:
        answers = _in_batches(candidate, pixels, batch)
    except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is a verdict, not a crash
        return BatchParity(batch=batch, error=f"the graph refused it ({' '.join(str(error).split())[:200]})")
    if answers.shape != reference.shape:
        return BatchParity(batch=batch, error=f"{answers.shape} answered, {reference.shape} expected")
    wanted, found = reference.astype(np.float64), answers.astype(np.float64)
    difference = found - wanted
    norms = np.linalg.norm(wanted, axis=1)
    relative = np.linalg.norm(difference, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return BatchParity(
        batch=batch,
        relative_l2=float(relative.max()),
        max_abs=float(np.abs(difference).max()),
        max_score_difference=float(np.abs(softmax(answers) - softmax(reference)).max()),
        top1_agreement=float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
    )


def _in_batches(candidate: Runtime, pixels: Pixels, batch: int) -> NDArray[np.float32]:
    """Runs every image in batches of exactly `batch`; the last is filled up with images from the start."""
    count = len(pixels)
    answers = []
    for start in range(0, count, batch):
        chosen = np.arange(start, start + batch) % count
        logits = candidate.infer(pixels[chosen])
        if len(logits) != batch:
            raise ValueError(f"{len(logits)} answers to {batch} images")
        answers.append(logits)
    return np.concatenate(answers)[:count]
