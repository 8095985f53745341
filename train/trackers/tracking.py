"""The listener between a training and a tracker: what is recorded, what is already there, and what to do on failure."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

from lipsformer.evaluation.report.write import CONFUSION, MISTAKES
from lipsformer.system import console
from lipsformer.train.listeners.listener import Listener, RunInfo
from lipsformer.train.metrics import EpochMetrics, StepMetrics
from lipsformer.train.run_folder import BEST, CURVES

from .tracker import Tracker

__all__ = ["Tracking"]

INTERVAL = 20  # steps between two points
PAUSE = 60.0  # seconds from a failure to the next attempt
PENDING = 10_000  # points kept for a tracker that cannot be written
PLOTS = (CURVES, CONFUSION, MISTAKES)


class Tracking(Listener):
    """Writes `steps/...` every 20 steps, and `train/...`, `val/...` and `epochs/...` after each epoch.

    Metrics go to the record before the state of their step is saved, and the record is asked for its last step when a
    run resumes. Thus a resumed run continues its record, and no point is there twice, even after SIGKILL.

    A failure is reported once and counted. What could not be written is kept, and written when the tracker works
    again.
    """

    def __init__(self, tracker: Tracker, clock: Callable[[], float] = time.monotonic) -> None:
        self.tracker = tracker
        self.failures = 0
        self._clock = clock
        self._retry_at = -math.inf
        self._last: int | None = None  # step of the record, None until it is open
        self._pending: collections.deque[tuple[int, dict[str, float]]] = collections.deque()
        self._lost = 0
        self._steps: list[StepMetrics] = []
        self._of_last_step: dict[str, object] = {}

    def on_begin(self, run: RunInfo) -> None:
        """Opens the record. It gets the epochs that are done, if it lacks them."""
        self._run = run
        for epoch in run.history:
            self._add(epoch.step, epoch_metrics(epoch))
        if self._deliver():
            run.say(f"{self.tracker.name}: {self.tracker.where}")

    def on_step(self, step: StepMetrics) -> None:
        """Writes means over the last steps every 20 steps; at the end of an epoch together with those of the epoch."""
        self._steps.append(step)
        if step.step % INTERVAL:
            return
        metrics, self._steps = step_metrics(self._steps), []
        if step.step % self._run.steps_per_epoch == 0:
            self._of_last_step = metrics
            return
        self._add(step.step, metrics)
        self._deliver()

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Writes the metrics of the epoch, at its last step."""
        self._add(epoch.step, self._of_last_step | epoch_metrics(epoch))
        self._of_last_step = {}
        self._deliver()

    def on_report(self, *, finished: bool) -> None:
        """Writes what is left, adds plots and checkpoint if the training is `finished`, and closes the record."""
        self._retry_at = -math.inf
        done = self._deliver()
        if done and finished:
            folder = self._run.folder.path
            plots = [folder / name for name in PLOTS if (folder / name).is_file()]
            done = self._try(lambda: self.tracker.add_files(plots, folder / BEST))
        if self._last is not None:
            done = self._try(lambda: self.tracker.close(finished=finished)) and done
        if not done or self._lost:
            console.say(
                f"{self.tracker.name}: the record is incomplete after {self.failures} failures: it lacks "
                f"{len(self._pending) + self._lost} points{' and files' if finished else ''}",
                always=True,
            )

    def _add(self, step: int, metrics: Mapping[str, object]) -> None:
        known = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        self._pending.append((step, {name: value for name, value in known.items() if math.isfinite(value)}))
        if len(self._pending) > PENDING:
            self._pending.popleft()
            self._lost += 1

    def _deliver(self) -> bool:
        """Writes the pending points, unless the last failure was a moment ago. Returns whether none is left."""
        return self._clock() >= self._retry_at and self._try(self._write)

    def _write(self) -> None:
        if self._last is None:
            self._last = self.tracker.open(self._run)
        while self._pending:
            step, metrics = self._pending[0]
            if step > self._last:
                self.tracker.log(step, metrics)
                self._last = step
            self._pending.popleft()

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            with _quiet_library():
                action()
        except Exception as error:  # noqa: BLE001  # a library of others, its network and its disk
            self.failures += 1
            self._retry_at = self._clock() + PAUSE
            if self.failures == 1:
                problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                self._run.say(
                    f"{self.tracker.name}: cannot be written ({problem}); the training continues, "
                    f"and what is missing is written when that works again"
                )
            return False
        return True


def step_metrics(steps: Sequence[StepMetrics]) -> dict[str, object]:
    """The metrics of the last of some steps: means, and the current learning rate and number of skipped steps."""
    last, seconds = steps[-1], sum(each.seconds for each in steps)
    metrics: dict[str, object] = {
        "steps/loss": _mean([each.loss for each in steps]),
        "steps/top1": _mean([each.top1 for each in steps]),
        "steps/learning_rate": last.learning_rate,
        "steps/skipped": last.skipped,
    }
    if seconds > 0:
        metrics["steps/images_per_second"] = sum(each.images for each in steps) / seconds
        metrics["steps/data_wait"] = sum(each.data_seconds for each in steps) / seconds
    return metrics


def epoch_metrics(epoch: EpochMetrics) -> dict[str, object]:
    """The metrics of an epoch: `train/loss`, `val/top1`, `epochs/seconds` and so on."""
    metrics: dict[str, object] = {}
    for name, value in epoch.to_dict().items():
        part, _, rest = name.partition("_")
        metrics[f"{part}/{rest}" if part in ("train", "val") else f"epochs/{name}"] = value
    return metrics


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Within the block, a library's warnings and what it prints do not disturb the training's display."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
