"""The display of a training on stderr: a live panel on a terminal, plain lines elsewhere.

The training itself redraws the panel, a few times a second, so that no thread runs while data loading forks workers.
"""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from lipsformer.system import console
from lipsformer.train.metrics import EpochMetrics, StepMetrics

from .listener import Listener, RunInfo

__all__ = ["ProgressDisplay", "duration"]

LIVE_INTERVAL, PLAIN_INTERVAL = 0.25, 10.0  # seconds between two drawings, between two lines
WINDOW_SECONDS, WINDOW_STEPS = 30.0, (20, 1000)  # of recent steps: at least and at most so many
WIDEST = 100  # columns
BLOCKS = "▁▂▃▄▅▆▇█"
MUCH_WAITING = 0.2  # share of time spent waiting for images above which more workers would help

# Raised by a write once the terminal is gone (a cut session) or closed, or when it cannot show a character.
TERMINAL_ERRORS = (OSError, ValueError, LookupError)


class ProgressDisplay(Listener):
    """Shows epoch, step, recent metrics, speed and time left; prints one line for each epoch.

    If the terminal goes away, the display falls silent and the training continues.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._panel: Panel | None = None
        self._silent = False

    def on_begin(self, run: RunInfo) -> None:
        """Takes the foot of the terminal, if stderr is one."""
        self._status = Status(run)
        terminal = Console(stderr=True)
        if sys.stderr.isatty() and terminal.is_terminal and not terminal.is_dumb_terminal:
            self._panel = Panel(terminal, console.printable(run.title), self._status)
            self._try(self._panel.start)
        self._interval = LIVE_INTERVAL if self._panel else PLAIN_INTERVAL
        self._last = self._clock()

    def on_step(self, step: StepMetrics) -> None:
        """Updates the metrics."""
        self._status.add(step, self._clock())
        self._refresh("")

    def on_validation(self, done: int, batches: int) -> None:
        """Shows how far validation has come."""
        self._refresh(f"validating {done}/{batches}")

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Prints the epoch's line."""
        self._status.finish(epoch, self._clock())
        self.on_message(self._status.summary())
        if self._panel:
            self._try(self._panel.draw)

    def on_message(self, text: str) -> None:
        """Prints a line above the panel."""
        line = console.printable(text)
        self._try(lambda: self._panel.print_line(line) if self._panel else console.say(line))
        self._last = self._clock()

    def on_end(self) -> None:
        """Gives the terminal back; the printed lines stay."""
        if self._panel:
            self._try(self._panel.stop)

    def _refresh(self, note: str) -> None:
        """Draws the panel or prints a line, if the last one was long enough ago."""
        if (now := self._clock()) - self._last < self._interval:
            return
        self._last = now
        self._try(lambda: self._panel.draw(note) if self._panel else console.say(self._status.line(note)))

    def _try(self, write: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            write()
        except TERMINAL_ERRORS:
            self._silent = True
            if self._panel:
                with contextlib.suppress(*TERMINAL_ERRORS):
                    self._panel.stop()


class Status:
    """Where a run stands: means over its recent steps, speed, and time left."""

    def __init__(self, run: RunInfo) -> None:
        self.epochs, self.steps_per_epoch = run.recipe.epochs, run.steps_per_epoch
        self.history = list(run.history)
        self.done = run.step
        self.recent: collections.deque[StepMetrics] = collections.deque(maxlen=WINDOW_STEPS[1])
        self._last_step = 0.0
        self._between = 0.0  # seconds of the last validation, with its checkpoints

    def add(self, step: StepMetrics, now: float) -> None:
        """Adds a step that ended at `now`, in seconds of any clock."""
        self.done, self._last_step = step.step, now
        self.recent.append(step)
        seconds = sum(each.seconds for each in self.recent)
        while len(self.recent) > WINDOW_STEPS[0] and seconds - self.recent[0].seconds >= WINDOW_SECONDS:
            seconds -= self.recent.popleft().seconds

    def finish(self, epoch: EpochMetrics, now: float) -> None:
        """Adds an epoch whose validation ended at `now`."""
        self.history.append(epoch)
        self._between = now - self._last_step if self.recent else 0.0  # resumed at the end of an epoch

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1, or the last one."""
        return self.recent[-1].epoch if self.recent else min(self.done // self.steps_per_epoch + 1, self.epochs)

    @property
    def step_in_epoch(self) -> int:
        """Steps of this epoch that are done."""
        return self.done - (self.epoch - 1) * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def time_left(self) -> str:
        """Time to the end, at the recent speed and with validations as long as the last one; at first empty."""
        if not self.recent:
            return ""
        step = sum(each.seconds for each in self.recent) / len(self.recent)
        seconds = (self.steps - self.done) * step + (self.epochs - self.epoch) * self._between
        return f"{duration(seconds)} left"

    def metrics(self) -> dict[str, tuple[str, bool]]:
        """Recent metrics by name: the text to show, and whether it deserves attention."""
        if not self.recent:
            return {}
        seconds = sum(each.seconds for each in self.recent) or math.inf
        wait = sum(each.data_seconds for each in self.recent) / seconds
        speed, last = sum(each.images for each in self.recent) / seconds, self.recent[-1]
        return {
            "loss": (_mean("{:.3f}", [each.loss for each in self.recent]), False),
            "top-1": (_mean("{:.1%}", [each.top1 for each in self.recent]), False),
            "lr": (f"{last.learning_rate:.2g}", False),
            "images/s": (f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}", False),
            "data wait": (f"{wait:.0%}", wait >= MUCH_WAITING),
            "skipped": (f"{last.skipped:,}", last.skipped > 0),
        }

    def line(self, note: str = "") -> str:
        """All of it in one line."""
        parts = [f"epoch {self.epoch}/{self.epochs}: step {self.step_in_epoch}/{self.steps_per_epoch}", note]
        parts += [f"{name} {text}" for name, (text, _) in self.metrics().items() if (name, text) != ("skipped", "0")]
        return ", ".join(part for part in (*parts, self.time_left) if part)

    def summary(self) -> str:
        """The line of the epoch that has just ended."""
        epoch = self.history[-1]
        train, validation = (_mean("{:.3f}", [loss]) for loss in (epoch.train_loss, epoch.val_loss))
        speed = f", {epoch.images_per_second:.0f} images/s" if epoch.images_per_second else ""
        distilled = epoch.train_distillation_loss
        teacher = "" if distilled is None else f" (distillation {distilled:.3f})"
        skipped = f", {epoch.skipped_steps} steps skipped" if epoch.skipped_steps else ""
        return (
            f"epoch {epoch.epoch}/{self.epochs}: train loss {train}{teacher}, val loss {validation}, "
            f"top-1 {epoch.val_top1:.1%} (best {max(done.val_top1 for done in self.history):.1%}){speed}, "
            f"{epoch.seconds:.1f} s{skipped}"
        )


class Panel(Progress):
    """The live panel: title, bars of the epoch and the run, recent metrics, and validation accuracy so far."""

    def __init__(self, terminal: Console, title: str, status: Status) -> None:
        self._title, self._status = title, status
        super().__init__(
            TextColumn("{task.description}", style="dim", markup=False),
            BarColumn(None, complete_style="blue", finished_style="blue"),
            TextColumn("{task.fields[note]}", markup=False, justify="right"),
            console=terminal,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,  # stdout is for results
            expand=True,
        )
        self._epoch, self._run = (self.add_task("", total=None, visible=False, note="") for _ in range(2))

    def draw(self, note: str = "") -> None:
        """Redraws the panel; `note` replaces the step."""
        at = self._status
        step = note or f"step {at.step_in_epoch:,}/{at.steps_per_epoch:,}"
        for task, name, done, total, text in (
            (self._epoch, f"epoch {at.epoch}/{at.epochs}", at.step_in_epoch, at.steps_per_epoch, step),
            (self._run, "total", at.done, at.steps, at.time_left),
        ):
            self.update(task, description=name, completed=done, total=total, note=text, visible=True)
        self.refresh()

    def print_line(self, line: str) -> None:
        """Prints a line above the panel."""
        self.console.print(Text(line))

    def get_renderables(self) -> Iterable[RenderableType]:
        """The parts of the panel."""
        if not self._status.recent:
            return
        cells = [
            Text.assemble((text, "bold yellow" if alarm else "bold"), "\n", (name, "dim"))
            for name, (text, alarm) in self._status.metrics().items()
        ]
        title = Text(self._title, "bold", no_wrap=True, overflow="ellipsis")
        metrics = Columns(cells, padding=(0, 3), equal=True)
        for part in ("", title, self.make_tasks_table(self.tasks), metrics, self._accuracy()):
            yield Constrain(part, WIDEST)

    def _accuracy(self) -> Text:
        """Validation accuracy of the last and the best epoch, with blocks for the epochs so far."""
        values = [epoch.val_top1 for epoch in self._status.history]
        if not values:
            return Text("validation top-1 after the first epoch", "dim", no_wrap=True, overflow="ellipsis")
        best = max(values)
        text = Text.assemble((f"{values[-1]:.1%}", "bold"), (" validation top-1", "dim"))
        if best > values[-1]:
            text.append(f", best {best:.1%} after epoch {values.index(best) + 1}", "dim")
        room = min(WIDEST, self.console.width) - len(text) - 2
        if len(values) > 1 and room > 1 and not self.console.options.ascii_only:
            low, span = min(values[-room:]), max(values[-room:]) - min(values[-room:]) or 1.0
            blocks = (BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in values[-room:])
            text.append("  " + "".join(blocks), "blue")
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


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


def _mean(form: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return form.format(sum(known) / len(known)) if known else "none"
