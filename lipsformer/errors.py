"""The two ways a command can refuse to go on, each with its exit status."""

from __future__ import annotations

__all__ = ["GateError", "InputError", "LipsFormerError"]


class LipsFormerError(Exception):
    """A failure that is told to the user in one line: what, where, and how to mend it."""

    exit_code = 1


class GateError(LipsFormerError):
    """A check on the result failed (parity, hash, accuracy); nothing was published. Exit status 1."""


class InputError(LipsFormerError, ValueError):
    """The input or its usage is wrong and the caller can mend it. Exit status 2."""

    exit_code = 2
