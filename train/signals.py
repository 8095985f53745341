"""Graceful stop on SIGTERM, which schedulers send before they reclaim a machine, and on Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from lipsformer.system.errors import StoppedError

__all__ = ["StopRequest", "stop_on_signals", "stopped"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stopped(output: Path, step: int, total: int, number: int) -> StoppedError:
    """The error that ends a training after signal `number`."""
    return StoppedError(
        f"{output}: stopped at step {step} of {total}, its state is saved; run the same command again to resume", number
    )


class StopRequest:
    """The signal that asked the training to stop, 0 if none did."""

    signal: int = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Records the first signal. A second one ends the process at once, during the step."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, signals are recorded instead of ending the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
