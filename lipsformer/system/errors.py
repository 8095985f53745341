"""User-facing errors and their exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["GateError", "InputError", "LipsFormerError", "StoppedError", "check_fields", "suggest"]

MOST_NAMES = 22  # that a message lists: a model may have a thousand classes


class LipsFormerError(Exception):
    """A failure reported to the user in one line: what, where, and how to fix it. Exit status 1."""

    exit_code = 1


class GateError(LipsFormerError):
    """A check on the result failed (parity, hash, accuracy); nothing was published. Exit status 1."""


class InputError(LipsFormerError, ValueError):
    """The input or its usage is wrong, and the caller can fix it. Exit status 2."""

    exit_code = 2


class StoppedError(LipsFormerError):
    """Work stopped by a signal, its state saved. The exit status is 128 + the signal's number, as in shells."""

    def __init__(self, message: str, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(message)


def check_fields(given: Iterable[str], needed: Iterable[str], what: str) -> None:
    """Checks that the given names are exactly the needed ones.

    Raises:
        InputError: for an unknown name, with the nearest known one, or for the missing names.
    """
    given, needed = list(given), list(needed)
    for name in given:
        if name not in needed:
            raise InputError(f"unknown {what} '{name}': {suggest(name, needed)}")
    if missing := [name for name in needed if name not in given]:
        raise InputError(f"missing {what}: {', '.join(missing)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all, of many the first ones and a count."""
    names = list(known)
    if near := difflib.get_close_matches(name, names, 1):
        return f"did you mean '{near[0]}'?"
    more = len(names) - MOST_NAMES
    return f"known: {', '.join(names[:MOST_NAMES])}{f' and {more} more' if more > 0 else ''}"
