"""What a person sees while work goes on: a live bar on a terminal, plain lines elsewhere; all on stderr.

stdout is for results alone, so that `--json` can be piped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["printable", "say", "track"]

PLAIN_INTERVAL_SECONDS = 10.0


def printable(text: str) -> str:
    """`text` without what a terminal would obey: names out of a file may hold control characters."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def say(message: str) -> None:
    """Prints one line on stderr."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def track(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Shows progress of `total` steps; gives a function `advance(steps, note)`.

    On a terminal a bar with the time left; elsewhere a line every ten seconds.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda steps, note: bar.update(task, advance=steps, note=note)
        return

    done, last = 0, time.monotonic()

    def advance(steps: int, note: str) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last >= PLAIN_INTERVAL_SECONDS and done < total:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {note}".rstrip())

    yield advance
