"""Explanations: heat maps of images that have been classified, without a cost for those that ask for none."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lipsformer.inference.heat_map import Explainer, HeatMap
from lipsformer.inference.runtimes import Pixels

from .admission import Overloaded
from .fault_isolation import FaultError

__all__ = ["MOST_PENDING", "Explanations"]

MOST_PENDING = 8  # in a worker: a heat map costs twice a classification, and is not batched


class Explanations:
    """Draws one heat map at a time, in a thread next to the one that classifies. Use it in one event loop.

    Args:
        explainer: of the bundle; called in one thread only.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.stage = explainer.stage
        self._explainer = explainer
        self._pending = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")

    async def close(self) -> None:
        """Ends the thread, after the heat map that is being computed."""
        await asyncio.to_thread(self._thread.shutdown)

    async def explain(self, pixels: Pixels, index: int) -> HeatMap:
        """The heat map of an image (S, S, 3) for class `index`. If cancelled before its turn, it is not computed.

        Raises:
            Overloaded: if eight are pending already.
            FaultError: if it is not finite.
        """
        if self._pending >= MOST_PENDING:
            raise Overloaded(f"{self._pending} heat maps are pending already")
        self._pending += 1
        try:
            computing = asyncio.get_running_loop().run_in_executor(self._thread, self._explainer.explain, pixels, index)
            found = await computing
        finally:
            self._pending -= 1
        if not np.isfinite([found.logit, *found.contributions.flat]).all():
            raise FaultError("a heat map that is not finite")
        return found
