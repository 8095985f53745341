"""Progress on stderr: a live bar on a terminal, plain lines elsewhere.

stdout is for results alone, so that the output of `--json` can be piped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["is_quiet", "printable", "quiet", "say", "track"]

PLAIN_INTERVAL_SECONDS = 10.0

_quiet = False  # not a context variable: threads that a command starts are to be quiet too


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences `say` and `track` in this process and all its threads. Errors and `say(..., always=True)` still show."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether `quiet` is active, for displays that draw on the terminal themselves."""
    return _quiet


def printable(text: str) -> str:
    """Replaces control characters, which a terminal would obey: names read from a file may hold them."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def say(message: str, *, always: bool = False) -> None:
    """Prints one line on stderr; under `quiet` only with `always`, for warnings and where the result is."""
    if always or not _quiet:
        print(message, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def track(title: str, total: int | Callable[[], int | None]) -> Iterator[Callable[[int, str], None]]:
    """Shows the progress of `total` steps. Yields a function `advance(steps, note)`.

    On a terminal it is a bar with the remaining time, elsewhere a line every ten seconds. A function is asked for the
    total at every step, and answers None while it is unknown.
    """
    current = total if callable(total) else lambda: total
    if sys.stderr.isatty() and not _quiet:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=current(), note="")
            yield lambda steps, note: bar.update(task, advance=steps, total=current(), note=note)
        return

    done, last = 0, time.monotonic()

    def advance(steps: int, note: str) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last >= PLAIN_INTERVAL_SECONDS and done != current():
            last = time.monotonic()
            say(f"{title}: {done}/{current() or '?'} {note}".rstrip())

    yield advance
