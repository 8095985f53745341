"""Batch invariance: an image's logits must not depend on the other images of its batch, nor on its place there.

Dynamic quantization fails this check: it scales activations by the largest value in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lipsformer.inference.runtimes import Logits, Runtime

from .gate_images import GateImages
from .metrics import relative_l2
from .thresholds import Limits, failure

__all__ = ["BatchInvariance", "check_batch_invariance", "invariance_cost"]

PROBES = 2  # photos that are run in different batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """How much logits change with the rest of the batch, as relative L2; None if the largest batch is 1.

    Attributes:
        neighbors: the worst change for a photo that keeps its place while its neighbors change: photos, hard inputs,
            copies of itself. Its arithmetic is the same each time, so even rounding should be.
        order: the worst change when the photos fill the batches in another order.
        error: why there is no usable output.
    """

    neighbors: float | None = None
    order: float | None = None
    error: str | None = None

    def failure(self, limits: Limits) -> str | None:
        """Why the check fails, or None if it passes."""
        found = self.error or failure({"neighbours": self.neighbors, "order": self.order}, limits)
        return found and f"batch invariance: {found}"


def invariance_cost(images: GateImages, max_batch: int) -> int:
    """How many images `check_batch_invariance` runs, for the progress bar."""
    return 0 if max_batch == 1 else 3 * PROBES * max_batch + len(images.photos)


def check_batch_invariance(
    candidate: Runtime, images: GateImages, ordered: Logits | None, max_batch: int, advance: Callable[[int, str], None]
) -> BatchInvariance:
    """Run photos with different neighbors and in different places, in batches of `max_batch`.

    `ordered` holds the candidate's logits (N, K) of the photos in order at that batch size; None if it failed there.
    """
    if max_batch == 1 or ordered is None:
        return BatchInvariance()
    try:
        changes = [_change(candidate, images, probe, max_batch, advance) for probe in range(PROBES)]
        order = _reordered(candidate, images, ordered, max_batch, advance)
    except Exception as error:  # noqa: BLE001 - whatever a broken graph raises is a failed check, not a crash
        return BatchInvariance(error=f"the runtime refused them ({' '.join(str(error).split())[:200]})")
    return BatchInvariance(neighbors=float(np.max(changes)), order=order)  # NaN stays NaN, unlike with `max`


def _change(
    candidate: Runtime, images: GateImages, probe: int, max_batch: int, advance: Callable[[int, str], None]
) -> float:
    """How much a photo's logits change with its neighbors; the first probe is first in the batch, the second last."""
    photo = images.photos[probe % len(images.photos)]
    place = 0 if probe == 0 else max_batch - 1
    logits = []
    for neighbors in (images.photos, images.hard, photo[None]):
        batch = neighbors[np.arange(probe + 1, probe + 1 + max_batch) % len(neighbors)]
        batch[place] = photo
        logits.append(candidate.infer(batch).logits[place])
        advance(max_batch, "batch invariance")
    changes = relative_l2(np.stack([logits[0]] * 2), np.stack(logits[1:]))
    return float(changes.max())


def _reordered(
    candidate: Runtime, images: GateImages, ordered: Logits, max_batch: int, advance: Callable[[int, str], None]
) -> float:
    count = len(images.photos)
    order = np.random.default_rng(0).permutation(count)
    logits = np.empty_like(ordered)
    for start in range(0, count, max_batch):
        chosen = order[np.arange(start, start + max_batch) % count]
        logits[chosen] = candidate.infer(images.photos[chosen]).logits
        advance(min(max_batch, count - start), "batch invariance")
    return float(relative_l2(ordered, logits).max())
