"""How a training goes, smoothed for the eye: loss, accuracy, speed, and when it will be done."""

from __future__ import annotations

import collections
import dataclasses

__all__ = ["Pace", "Progress", "duration"]

MEMORY = 0.95  # of the running means: a step's weight halves every 14 steps
WINDOW_SECONDS = 30.0  # of steps that speed is measured over


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One step of a training, as it is told to `Pace` and `Display`.

    `epoch` and `step_in_epoch` count from 0. `loss` and `top1` of the step's batch are None where the step was skipped,
    or where they were not fetched from the device. `seconds` is the step's whole time, `wait_seconds` the part of it
    that was spent waiting for data. `images` is what all processes together took in; `skipped` counts the steps that
    were skipped so far.
    """

    epoch: int
    step_in_epoch: int
    loss: float | None
    top1: float | None
    learning_rate: float
    images: int
    wait_seconds: float
    seconds: float
    skipped: int


class RunningMean:
    """An exponential mean that is right from the first value on. Nothing before that."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        """Takes in one more value."""
        self._sum = MEMORY * self._sum + (1 - MEMORY) * value
        self._weight = MEMORY * self._weight + (1 - MEMORY)

    @property
    def value(self) -> float | None:
        """The mean."""
        return self._sum / self._weight if self._weight else None


class Pace:
    """Takes in the steps of a training of `epochs` times `steps_per_epoch`; `start_step` of them were done before."""

    def __init__(self, epochs: int, steps_per_epoch: int, start_step: int = 0) -> None:
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.done = start_step
        self.learning_rate: float | None = None
        self.skipped = 0
        self.loss, self.top1 = RunningMean(), RunningMean()
        self._recent: collections.deque[Progress] = collections.deque()
        self._seconds = self._waited = 0.0  # sums over the recent steps
        self._images = 0
        self._epoch: int | None = None
        self._last = 0.0  # when the last step ended
        self._between = RunningMean()  # seconds between two epochs: validation, checkpoints

    def add(self, progress: Progress, now: float) -> None:
        """Takes in a step that ended at `now`, in seconds of any clock."""
        if self._epoch is not None and progress.epoch != self._epoch:
            self._between.add(max(0.0, now - self._last - progress.seconds))
        self._epoch, self._last = progress.epoch, now
        self.done = progress.epoch * self.steps_per_epoch + progress.step_in_epoch + 1
        self.learning_rate, self.skipped = progress.learning_rate, progress.skipped
        if progress.loss is not None:
            self.loss.add(progress.loss)
        if progress.top1 is not None:
            self.top1.add(progress.top1)
        self._recent.append(progress)
        self._count(progress, 1)
        while len(self._recent) > 1 and self._seconds - self._recent[0].seconds >= WINDOW_SECONDS:
            self._count(self._recent.popleft(), -1)

    def _count(self, progress: Progress, sign: int) -> None:
        self._seconds += sign * progress.seconds
        self._waited += sign * progress.wait_seconds
        self._images += sign * progress.images

    @property
    def epoch(self) -> int:
        """The epoch at work, from 0; the last one where all steps are done."""
        if self._epoch is not None:
            return self._epoch
        return min(self.done // self.steps_per_epoch, self.epochs - 1)

    @property
    def step_in_epoch(self) -> int:
        """Steps of this epoch that are done."""
        return self.done - self.epoch * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def images_per_second(self) -> float | None:
        """Over the last half minute of steps."""
        return self._images / self._seconds if self._seconds > 0 else None

    @property
    def wait_share(self) -> float | None:
        """Share of the time of these steps that was spent waiting for data."""
        return min(1.0, max(0.0, self._waited / self._seconds)) if self._seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step at this speed, with the time between epochs as it has been so far."""
        if not self._recent:
            return None
        between = (self.epochs - 1 - self.epoch) * (self._between.value or 0.0)
        return max(0, self.steps - self.done) * self._seconds / len(self._recent) + between


def duration(seconds: float) -> str:
    """A time span in two units at most, such as "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"
