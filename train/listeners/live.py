"""What a person sees while a model trains: a live panel on a terminal, plain lines elsewhere; all on stderr.

The panel is redrawn by the training itself, a few times a second: no thread runs beside it. While it is shown, other
output belongs to `Display.say`; a second live bar, such as `console.track`, would write over it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from lipsformer.system import console

from .pace import Pace, Progress, duration

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Display", "Progress"]

LIVE_INTERVAL, PLAIN_INTERVAL = 0.25, 10.0  # seconds between two drawings, between two lines

# What writing raises once the terminal has gone (a session that was cut off), is closed, or cannot show a character.
TERMINAL_ERRORS = (OSError, ValueError, LookupError)


class Screen(Protocol):
    """Where a display shows: `interval` is the least time between two calls of `show`."""

    interval: float

    def start(self) -> None: ...

    def show(self, pace: Pace, note: str, validation: Sequence[float]) -> None: ...

    def write(self, line: str) -> None: ...

    def stop(self) -> None: ...


class Display:
    """Shows a training of `epochs` epochs while it is open.

    Whatever becomes of the terminal, the training goes on: a display that cannot be written to falls silent.

    Args:
        title: what is trained on what.
        epochs: of the whole training.
        steps_per_epoch: at least 1.
        start_step: steps that were done before, where a training is resumed.
        quiet: show nothing; for the other processes of a distributed training.
        validation: the top-1 accuracies of the epochs that were done before.
        clock: seconds that rise.
        screen: where to show, instead of stderr in the way that suits it.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        steps_per_epoch: int,
        start_step: int = 0,
        quiet: bool = False,
        *,
        validation: Sequence[float] = (),
        clock: Callable[[], float] = time.monotonic,
        screen: Screen | None = None,
    ) -> None:
        self._pace = Pace(epochs, steps_per_epoch, start_step)
        self._validation = list(validation)
        self._clock = clock
        self._screen: Screen | None = screen or (None if quiet else _choose_screen(console.printable(title)))
        self._last = 0.0

    def __enter__(self) -> Self:
        self._try(lambda screen: screen.start())
        self._last = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._try(lambda screen: screen.stop())

    def step(self, progress: Progress) -> None:
        """Takes in a step, and shows it if the last showing was long enough ago."""
        if self._screen is None:
            return
        now = self._clock()
        self._pace.add(progress, now)
        if now - self._last >= self._screen.interval:
            self._show("", now)

    def note(self, text: str) -> None:
        """Says what goes on between epochs, such as "validating 12/40", if the last showing was long enough ago."""
        if self._screen is not None and (now := self._clock()) - self._last >= self._screen.interval:
            self._show(text, now)

    def epoch(self, line: str, top1: float | None = None) -> None:
        """Prints the summary `line` of an epoch, to stay; `top1` is its validation accuracy."""
        if top1 is not None:
            self._validation.append(top1)
        self.say(line)

    def say(self, text: str) -> None:
        """Prints one line, to stay."""
        self._try(lambda screen: screen.write(console.printable(text)))
        self._last = self._clock()

    def _show(self, note: str, now: float) -> None:
        self._last = now
        self._try(lambda screen: screen.show(self._pace, console.printable(note), self._validation))

    def _try(self, call: Callable[[Screen], None]) -> None:
        if self._screen is None:
            return
        try:
            call(self._screen)
        except TERMINAL_ERRORS:
            screen, self._screen = self._screen, None
            with contextlib.suppress(*TERMINAL_ERRORS):
                screen.stop()


def _choose_screen(title: str) -> Screen:
    if sys.stderr.isatty():
        from rich.console import Console

        terminal = Console(stderr=True)
        if terminal.is_terminal and not terminal.is_dumb_terminal:
            return Panel(terminal, title)
    return Lines()


class Lines:
    """Plain lines, for a log."""

    interval = PLAIN_INTERVAL

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def write(self, line: str) -> None:
        """Prints the line."""
        console.say(line)

    def show(self, pace: Pace, note: str, validation: Sequence[float]) -> None:
        """Prints where the epoch stands."""
        parts = [f"step {pace.step_in_epoch}/{pace.steps_per_epoch}"]
        if note:
            parts.append(note)
        parts += [f"{label} {text}" if label else text for label, text in figures(pace)]
        console.say(f"epoch {pace.epoch + 1}/{pace.epochs}: {', '.join(parts)}")


class Panel:
    """A panel at the foot of a terminal; lines go above it."""

    interval = LIVE_INTERVAL

    def __init__(self, terminal: Console, title: str) -> None:
        from rich.live import Live

        self._title = title
        # stdout is left alone: it is for results. Warnings on stderr are led above the panel.
        self._live = Live(console=terminal, auto_refresh=False, transient=True, redirect_stdout=False)

    def start(self) -> None:
        """Takes the foot of the terminal."""
        self._live.start()

    def stop(self) -> None:
        """Gives it back; the lines stay."""
        self._live.stop()

    def write(self, line: str) -> None:
        """Prints the line above the panel."""
        self._live.console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def show(self, pace: Pace, note: str, validation: Sequence[float]) -> None:
        """Draws the panel anew."""
        from .panel import draw_panel

        self._live.update(draw_panel(pace, self._title, note, validation), refresh=True)


def figures(pace: Pace) -> list[tuple[str, str]]:
    """What there is to tell of a training in a log line, as (label, text)."""
    found = [
        ("loss", None if pace.loss.value is None else f"{pace.loss.value:.3f}"),
        ("top-1", None if pace.top1.value is None else f"{pace.top1.value:.1%}"),
        ("learning rate", None if pace.learning_rate is None else f"{pace.learning_rate:.2g}"),
        ("", None if pace.images_per_second is None else f"{pace.images_per_second:,.0f} images/s"),
        ("data wait", None if pace.wait_share is None else f"{pace.wait_share:.0%}"),
        ("skipped", f"{pace.skipped}" if pace.skipped else None),
        ("", None if pace.seconds_left is None else f"{duration(pace.seconds_left)} left"),
    ]
    return [(label, text) for label, text in found if text is not None]
