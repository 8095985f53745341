"""The parity gate: a file is published only if it answers as its checkpoint does, on real images and on hard ones.

The checkpoint answers one image at a time; the candidate answers the same images at batch 1, 3 and the maximum. So a
graph whose batch size was frozen by the trace cannot pass. And an image's answer must be the same in any company, see
`mates`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.runtimes import Logits, Pixels, Runtime
from lipsformer.system.console import track

from .batch_invariance import Mates, check_mates, mates_cost
from .metrics import ParityMetrics, accuracy, relative_l2, top1_agrees
from .reference import Reference
from .thresholds import AT_LEAST, Limits, failure

__all__ = ["BatchParity", "FileParity", "check_parity", "proved_batches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchParity:
    """Metrics at one batch size; `error` says why the candidate gave no usable answer, and then there are none.

    `accuracy` is the candidate's on labeled photos, `accuracy_loss` how many points it is below the checkpoint's.
    """

    batch: int
    photos: ParityMetrics | None = None
    hard: ParityMetrics | None = None
    accuracy: float | None = None
    accuracy_loss: float | None = None
    error: str | None = None

    def figures(self) -> dict[str, float | None]:
        """All figures by name, those on hard inputs with `hard_` in front."""
        photos = {} if self.photos is None else dataclasses.asdict(self.photos)
        hard = {} if self.hard is None else dataclasses.asdict(self.hard)
        labeled = {"accuracy": self.accuracy, "accuracy_loss": self.accuracy_loss}
        return photos | {f"hard_{name}": value for name, value in hard.items()} | labeled

    def failure(self, limits: Limits) -> str | None:
        """Why this batch size fails the gate, or None where it passes."""
        found = self.error or failure(self.figures(), limits)
        return found and f"batch {self.batch}: {found}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FileParity:
    """The gate's verdict on one file in one runtime: it passed if `failures` is empty.

    `errors` (N,) and `hard_errors` (M,) are the relative L2 errors of each photo and hard input, the worst of the batch
    sizes; `agrees` (N,) whether the photo's top-1 was the checkpoint's at all of them.
    """

    file: str
    target: str
    precision: str
    provider: str
    limits: Limits
    batches: tuple[BatchParity, ...]
    mates: Mates
    errors: NDArray[np.float64]
    hard_errors: NDArray[np.float64]
    agrees: NDArray[np.bool_]

    @property
    def failures(self) -> list[str]:
        """What failed, one sentence each."""
        found = [*(batch.failure(self.limits) for batch in self.batches), self.mates.failure(self.limits)]
        return [sentence for sentence in found if sentence]

    @property
    def passed(self) -> bool:
        """Whether everything was within its limit."""
        return not self.failures

    def worst(self, figure: str) -> float | None:
        """The worst value of a figure over the batch sizes; None if it was not measured."""
        values = [value for batch in self.batches if (value := batch.figures().get(figure)) is not None]
        least = figure == "accuracy" or figure.removeprefix("hard_") in AT_LEAST
        return (min(values) if least else max(values)) if values else None

    def summary(self) -> dict[str, Any]:
        """What the manifest says of the file: verdict, limits, and the figures at each batch size."""
        rows = [{"batch": row.batch, **row.figures(), "error": row.error} for row in self.batches]
        return {
            "passed": self.passed,
            "provider": self.provider,
            "photos": len(self.errors),
            "thresholds": dict(self.limits),
            "batches": [{name: value for name, value in row.items() if value is not None} for row in rows],
            "neighbors": self.mates.neighbors,
            "order": self.mates.order,
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data for strict JSON: what is not finite is None."""
        facts = {"file": self.file, "target": self.target, "precision": self.precision}
        errors = {"errors": self.errors.tolist(), "hard_errors": self.hard_errors.tolist()}
        found: dict[str, Any] = _finite({**facts, "failures": self.failures, **self.summary(), **errors})
        return found


def proved_batches(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are tried: 1, 3 and the largest."""
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
    """Compares a candidate's logits with the checkpoint's, at each batch size and in different company.

    Args:
        candidate: the runtime under test.
        reference: the images, with the checkpoint's answers to each alone.
        file: the name of what the candidate runs, for the report, as `target` and `precision`.
        max_batch: the largest batch to prove.
        limits: what to reach.
    """
    images = reference.images
    batches = proved_batches(max_batch)
    together = len(images.photos) + len(images.hard)
    rows, errors, hard_errors, agreements = [], [], [], []
    answers: Logits | None = None
    with track(f"parity of {file}", together * len(batches) + mates_cost(images, max_batch)) as advance:
        for batch in batches:
            row, found = _compare(candidate, reference, batch, advance)
            rows.append(row)
            answers = None if found is None else found[0]
            if found is not None:
                errors.append(relative_l2(reference.photos, found[0]))
                hard_errors.append(relative_l2(reference.hard, found[1]))
                agreements.append(top1_agrees(reference.photos, found[0]))
        mates = check_mates(candidate, images, answers, max_batch, advance)
    return FileParity(
        file=file,
        target=target,
        precision=precision,
        provider=candidate.provider,
        limits=limits,
        batches=tuple(rows),
        mates=mates,
        errors=np.max([np.full(len(images.photos), -np.inf), *errors], axis=0),
        hard_errors=np.max([np.full(len(images.hard), -np.inf), *hard_errors], axis=0),
        agrees=np.all([np.full(len(images.photos), bool(errors)), *agreements], axis=0),
    )


def _compare(
    candidate: Runtime, reference: Reference, batch: int, advance: Callable[[int, str], None]
) -> tuple[BatchParity, tuple[Logits, Logits] | None]:
    """The figures at one batch size, and the logits of photos and hard inputs; None where there are no usable ones."""
    images = reference.images
    try:
        photos = _in_batches(candidate, images.photos, batch, advance)
        hard = _in_batches(candidate, images.hard, batch, advance)
    except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is a verdict, not a crash
        return BatchParity(batch=batch, error=f"it was refused ({' '.join(str(error).split())[:200]})"), None
    if photos.shape != reference.photos.shape:
        return BatchParity(batch=batch, error=f"{photos.shape} answered, {reference.photos.shape} expected"), None
    if not np.isfinite(photos).all():
        return BatchParity(batch=batch, error="an answer to a photo is not finite"), None
    broken = np.flatnonzero(~np.isfinite(hard).all(axis=1))
    if len(broken):
        which = images.hard_names[broken[0]]
        return BatchParity(batch=batch, error=f"the answer to the hard input '{which}' is not finite"), None
    after = None if images.labels is None else accuracy(photos, images.labels)
    before = None if images.labels is None else accuracy(reference.photos, images.labels)
    row = BatchParity(
        batch=batch,
        photos=ParityMetrics.of(reference.photos, photos),
        hard=ParityMetrics.of(reference.hard, hard),
        accuracy=after,
        accuracy_loss=None if after is None or before is None else 100 * (before - after),
    )
    return row, (photos, hard)


def _in_batches(candidate: Runtime, pixels: Pixels, batch: int, advance: Callable[[int, str], None]) -> Logits:
    """Runs every image in batches of exactly `batch`; the last is filled up with images from the start."""
    count = len(pixels)
    answers = []
    for start in range(0, count, batch):
        logits = candidate.infer(pixels[np.arange(start, start + batch) % count])
        if len(logits) != batch:
            raise ValueError(f"{len(logits)} answers to {batch} images")
        answers.append(logits)
        advance(min(batch, count - start), f"batch {batch}")
    return np.concatenate(answers)[:count]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
