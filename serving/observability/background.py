"""Work that nobody waits for: a thread of its own behind a bounded queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Background"]

GATHERING_SECONDS = 0.02

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands items to `consume` in a thread, all those at once that have come meanwhile.

    Args:
        consume: called in one thread only; what it raises is counted as dropped.
        name: of the thread.
        capacity: how many items may wait; further ones are dropped, because whoever puts one in must never wait.

    Attributes:
        dropped: items that found no room or could not be consumed.
    """

    def __init__(self, consume: Callable[[Sequence[Item]], None], *, name: str, capacity: int) -> None:
        self.dropped = 0
        self._consume = consume
        self._capacity = capacity
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()  # None ends the thread
        # A daemon: one that is stuck, on a full pipe or a dead disk, must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Takes an item, or drops it; returns at once."""
        if self._queue.qsize() < self._capacity:
            self._queue.put(item)
        else:
            self.dropped += 1

    def close(self, seconds: float) -> None:
        """Ends the thread after what waits now, or leaves it after so many seconds."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        ended = False
        while not ended:
            items = []
            for item in self._take():
                if item is None:
                    ended = True
                else:
                    items.append(item)
            try:
                self._consume(items)
            except Exception:  # noqa: BLE001 - whatever it was, the next items deserve a try
                self.dropped += len(items)

    def _take(self) -> Sequence[Item | None]:
        """Everything that waits; waits for the first, and then a moment: to be woken for each would cost more."""
        items = [self._queue.get()]
        if items[0] is not None:
            time.sleep(GATHERING_SECONDS)
        while not self._queue.empty():
            items.append(self._queue.get())
        return items
