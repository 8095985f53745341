"""The parity check of one file against its checkpoint, on real images and on hard ones.

The checkpoint runs one image at a time, the candidate the same images at batch 1, 3 and the maximum. So a graph whose
batch size was frozen by the trace cannot pass. See `batch_invariance` for the influence of the other images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.runtimes import Logits, Outputs, Pixels, Runtime
from lipsformer.system.console import track
from lipsformer.system.strict_json import finite

from .batch_invariance import BatchInvariance, check_batch_invariance, invariance_cost
from .metrics import ParityMetrics, accuracy, relative_l2, top1_agrees
from .reference import Reference
from .thresholds import AT_LEAST, Limits, failure

__all__ = ["BatchParity", "FileParity", "check_parity", "checked_batches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchParity:
    """Metrics at one batch size; none if the candidate gave no usable output, and `error` says why.

    `accuracy` is the candidate's on labeled photos, `accuracy_loss` how many points it is below the checkpoint's.
    """

    batch: int
    photos: ParityMetrics | None = None
    hard: ParityMetrics | None = None
    accuracy: float | None = None
    accuracy_loss: float | None = None
    error: str | None = None

    def metrics(self) -> dict[str, float | None]:
        """All metrics by name; those on hard inputs start with `hard_`."""
        photos = {} if self.photos is None else dataclasses.asdict(self.photos)
        hard = {} if self.hard is None else dataclasses.asdict(self.hard)
        labeled = {"accuracy": self.accuracy, "accuracy_loss": self.accuracy_loss}
        return photos | {f"hard_{name}": value for name, value in hard.items()} | labeled

    def failure(self, limits: Limits) -> str | None:
        """Why this batch size fails, or None if it passes."""
        found = self.error or failure(self.metrics(), limits)
        return found and f"batch {self.batch}: {found}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FileParity:
    """The result of the check for one file in one runtime; it passed if `failures` is empty.

    `errors` (N,) and `hard_errors` (M,) are the relative L2 errors of each photo and hard input, the worst over the
    batch sizes. `agrees` (N,) says whether a photo's top-1 is the checkpoint's at all of them.
    """

    file: str
    target: str
    precision: str
    provider: str
    limits: Limits
    batches: tuple[BatchParity, ...]
    invariance: BatchInvariance
    errors: NDArray[np.float64]
    hard_errors: NDArray[np.float64]
    agrees: NDArray[np.bool_]

    @property
    def failures(self) -> list[str]:
        """The failures, one sentence each."""
        found = [*(batch.failure(self.limits) for batch in self.batches), self.invariance.failure(self.limits)]
        return [sentence for sentence in found if sentence]

    @property
    def passed(self) -> bool:
        """Whether everything was within its limit."""
        return not self.failures

    def worst(self, metric: str) -> float | None:
        """The worst value of a metric over the batch sizes; None if it was not measured."""
        values = [value for batch in self.batches if (value := batch.metrics().get(metric)) is not None]
        least = metric == "accuracy" or metric.removeprefix("hard_") in AT_LEAST
        return (min(values) if least else max(values)) if values else None

    def summary(self) -> dict[str, Any]:
        """The manifest's entry: whether it passed, limits, and the metrics at each batch size."""
        rows = [{"batch": row.batch, **row.metrics(), "error": row.error} for row in self.batches]
        return {
            "passed": self.passed,
            "provider": self.provider,
            "photos": len(self.errors),
            "thresholds": dict(self.limits),
            "batches": [{name: value for name, value in row.items() if value is not None} for row in rows],
            "neighbours": self.invariance.neighbors,
            "order": self.invariance.order,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: numbers that are not finite become None."""
        facts = {"file": self.file, "target": self.target, "precision": self.precision}
        errors = {"errors": self.errors.tolist(), "hard_errors": self.hard_errors.tolist()}
        return finite({**facts, "failures": self.failures, **self.summary(), **errors})


def checked_batches(max_batch: int) -> tuple[int, ...]:
    """The batch sizes to check: 1, 3 and the largest."""
    return tuple(sorted({1, min(3, max_batch), max_batch}))


def check_parity(
    candidate: Runtime,
    reference: Reference,
    *,
    file: str,
    target: str,
    precision: str,
    max_batch: int,
    limits: Limits,
) -> FileParity:
    """Compare a candidate's logits with the checkpoint's, at each batch size and with different neighbors.

    Args:
        candidate: the runtime under test.
        reference: the images, with the checkpoint's logits of each alone.
        file: name of the file that the candidate runs, for the report; so are `target` and `precision`.
        max_batch: the largest batch to check.
        limits: the limit of each metric.
    """
    images = reference.images
    batches = checked_batches(max_batch)
    together = len(images.photos) + len(images.hard)
    rows, errors, hard_errors, agreements = [], [], [], []
    answers: Logits | None = None
    with track(f"parity of {file}", together * len(batches) + invariance_cost(images, max_batch)) as advance:
        for batch in batches:
            row, found = _compare(candidate, reference, batch, limits, advance)
            rows.append(row)
            answers = None if found is None else found[0].logits
            if found is not None:
                errors.append(relative_l2(reference.photos.logits, found[0].logits))
                hard_errors.append(relative_l2(reference.hard.logits, found[1].logits))
                agreements.append(top1_agrees(reference.photos.logits, found[0].logits))
        invariance = check_batch_invariance(candidate, images, answers, max_batch, advance)
    return FileParity(
        file=file,
        target=target,
        precision=precision,
        provider=candidate.provider,
        limits=limits,
        batches=tuple(rows),
        invariance=invariance,
        errors=np.max([np.full(len(images.photos), -np.inf), *errors], axis=0),
        hard_errors=np.max([np.full(len(images.hard), -np.inf), *hard_errors], axis=0),
        agrees=np.all([np.full(len(images.photos), bool(errors)), *agreements], axis=0),
    )


def _compare(
    candidate: Runtime, reference: Reference, batch: int, limits: Limits, advance: Callable[[int, str], None]
) -> tuple[BatchParity, tuple[Outputs, Outputs] | None]:
    """The metrics at one batch size, and the outputs for photos and hard inputs, or None if they are unusable."""
    images = reference.images
    try:
        photos = _in_batches(candidate, images.photos, batch, advance)
        hard = _in_batches(candidate, images.hard, batch, advance)
    except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is a failed check, not a crash
        return BatchParity(batch=batch, error=f"the runtime refused it ({' '.join(str(error).split())[:200]})"), None
    for name, wanted, found in zip(Outputs._fields, reference.photos, photos, strict=True):
        if found is None and f"{name}_relative_l2" not in limits:  # a graph of a bundle of format 2
            continue
        if wanted is not None and (found is None or found.shape != wanted.shape):
            given = "missing" if found is None else str(found.shape)
            return BatchParity(batch=batch, error=f"{name} {given}, expected {wanted.shape}"), None
    if not np.isfinite(photos.logits).all():
        return BatchParity(batch=batch, error="the logits of a photo are not finite"), None
    broken = np.flatnonzero(~np.isfinite(hard.logits).all(axis=1))
    if len(broken):
        which = images.hard_names[broken[0]]
        return BatchParity(batch=batch, error=f"the logits of the hard input '{which}' are not finite"), None
    after = None if images.labels is None else accuracy(photos.logits, images.labels)
    before = None if images.labels is None else accuracy(reference.photos.logits, images.labels)
    row = BatchParity(
        batch=batch,
        photos=ParityMetrics.of(reference.photos, photos),
        hard=ParityMetrics.of(reference.hard, hard),
        accuracy=after,
        accuracy_loss=None if after is None or before is None else 100 * (before - after),
    )
    return row, (photos, hard)


def _in_batches(candidate: Runtime, pixels: Pixels, batch: int, advance: Callable[[int, str], None]) -> Outputs:
    """Outputs for every image in batches of exactly `batch`; the last is filled up with the first images."""
    count = len(pixels)
    answers = []
    for start in range(0, count, batch):
        outputs = candidate.infer(pixels[np.arange(start, start + batch) % count])
        if len(outputs.logits) != batch:
            raise ValueError(f"{len(outputs.logits)} outputs for {batch} images")
        answers.append(outputs)
        advance(min(batch, count - start), f"batch {batch}")
    return Outputs.joined(answers).at(slice(count))
