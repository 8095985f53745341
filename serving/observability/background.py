"""Background work: a thread behind a bounded queue."""

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
    """Passes items to `consume` in a thread, in batches of everything that has arrived meanwhile.

    Args:
        consume: called in one thread only; the items of a call that raises are counted as dropped.
        name: of the thread.
        capacity: number of items that may wait; further ones are dropped, because `put` must never block.

    Attributes:
        dropped: number of items that found no room or could not be consumed.
    """

    def __init__(self, consume: Callable[[Sequence[Item]], None], *, name: str, capacity: int) -> None:
        self.dropped = 0
        self._consume = consume
        self._capacity = capacity
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()  # None ends the thread
        # A daemon thread: if it is stuck, on a full pipe or a dead disk, it must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Queues an item, or drops it; returns at once, with whether the item was queued."""
        if self._queue.qsize() < self._capacity:
            self._queue.put(item)
            return True
        self.dropped += 1
        return False

    def close(self, seconds: float) -> None:
        """Ends the thread after the items that wait now, or abandons it after `seconds`."""
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
            except Exception:  # noqa: BLE001 - whatever it was, the next items may work
                self.dropped += len(items)

    def _take(self) -> Sequence[Item | None]:
        """Everything that waits, a moment after the first item has come: waking for each would cost more."""
        items = [self._queue.get()]
        if items[0] is not None:
            time.sleep(GATHERING_SECONDS)
        while not self._queue.empty():
            items.append(self._queue.get())
        return items
