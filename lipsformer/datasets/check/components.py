"""Connected components of a graph whose edges arrive in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components"]


class Components:
    """N nodes; `labels` (N,) int64 is the smallest node of each node's component."""

    def __init__(self, count: int) -> None:
        self.labels: NDArray[np.int64] = np.arange(count, dtype=np.int64)

    def unite(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Adds an edge from each node of `left` (M,) to that of `right` (M,)."""
        ends = np.stack([self.labels[left], self.labels[right]], axis=1)
        ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
        if not len(ends):
            return
        parents: dict[int, int] = {}

        def root(node: int) -> int:
            while (parent := parents.get(node, node)) != node:
                parents[node] = parents.get(parent, parent)
                node = parent
            return node

        for one, other in ends.tolist():
            low, high = sorted((root(one), root(other)))
            parents[high] = low
        target = np.arange(len(self.labels), dtype=np.int64)
        for node in parents:
            target[node] = root(node)
        self.labels = target[self.labels]
