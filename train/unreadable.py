"""Classes that lost every image because none can be read."""

from __future__ import annotations

import bisect
from collections.abc import Collection

import numpy as np

from lipsformer.datasets import Split

__all__ = ["lost_classes"]


def lost_classes(split: Split, messages: Collection[str]) -> list[str]:
    """The classes of `split` whose every image has one of the `messages`, which begin with the image's place."""
    if not messages:
        return []
    ordered = sorted(messages)
    readable = np.zeros(len(split.classes), bool)
    for index, label in enumerate(split.labels.tolist()):
        if not readable[label]:
            start = f"{split.where(index)}:"
            at = bisect.bisect_left(ordered, start)
            readable[label] = at == len(ordered) or not ordered[at].startswith(start)
    return [split.classes[label] for label in np.flatnonzero((split.counts() > 0) & ~readable).tolist()]
