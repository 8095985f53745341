"""Batch mates: an image's answer must not depend on which images share its batch, nor on its place among them.

Dynamic quantization fails here: it scales activations by the largest value in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lipsformer.inference.runtimes import Logits, Runtime

from .gate_images import GateImages
from .metrics import relative_l2
from .thresholds import Limits, failure

__all__ = ["Mates", "check_mates", "mates_cost"]

PROBES = 2  # photos that are seen in different company


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mates:
    """How much answers change with the company, as relative L2; None where batches have one image only.

    Attributes:
        neighbors: the worst change of a photo's answer that keeps its place while its neighbors change: photos, hard
            inputs, copies of itself. The arithmetic for it is the same each time, so even rounding should be.
        order: the worst change when the photos are dealt into the batches in another order.
        error: why there is no usable answer.
    """

    neighbors: float | None = None
    order: float | None = None
    error: str | None = None

    def failure(self, limits: Limits) -> str | None:
        """Why the test fails, or None where it passes."""
        found = self.error or failure({"neighbors": self.neighbors, "order": self.order}, limits)
        return found and f"batch mates: {found}"


def mates_cost(images: GateImages, max_batch: int) -> int:
    """How many images `check_mates` runs, for the progress shown."""
    return 0 if max_batch == 1 else 3 * PROBES * max_batch + len(images.photos)


def check_mates(
    candidate: Runtime, images: GateImages, ordered: Logits | None, max_batch: int, advance: Callable[[int, str], None]
) -> Mates:
    """Runs photos in different company, in batches of `max_batch`.

    `ordered` are the candidate's answers (N, K) to the photos in their order at that batch; None if it failed there.
    """
    if max_batch == 1 or ordered is None:
        return Mates()
    try:
        changes = [_change(candidate, images, probe, max_batch, advance) for probe in range(PROBES)]
        order = _reordered(candidate, images, ordered, max_batch, advance)
    except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is a verdict, not a crash
        return Mates(error=f"they were refused ({' '.join(str(error).split())[:200]})")
    return Mates(neighbors=float(np.max(changes)), order=order)  # NaN stays NaN, unlike with `max`


def _change(
    candidate: Runtime, images: GateImages, probe: int, max_batch: int, advance: Callable[[int, str], None]
) -> float:
    """How much one photo's answer changes with its neighbors; the first stands first in the batch, the second last."""
    photo = images.photos[probe % len(images.photos)]
    place = 0 if probe == 0 else max_batch - 1
    answers = []
    for company in (images.photos, images.hard, photo[None]):
        batch = company[np.arange(probe + 1, probe + 1 + max_batch) % len(company)]
        batch[place] = photo
        answers.append(candidate.infer(batch)[place])
        advance(max_batch, "batch mates")
    changes = relative_l2(np.stack([answers[0]] * 2), np.stack(answers[1:]))
    return float(changes.max())


def _reordered(
    candidate: Runtime, images: GateImages, ordered: Logits, max_batch: int, advance: Callable[[int, str], None]
) -> float:
    count = len(images.photos)
    order = np.random.default_rng(0).permutation(count)
    answers = np.empty_like(ordered)
    for start in range(0, count, max_batch):
        chosen = order[np.arange(start, start + max_batch) % count]
        answers[chosen] = candidate.infer(images.photos[chosen])
        advance(min(max_batch, count - start), "batch mates")
    return float(relative_l2(ordered, answers).max())
