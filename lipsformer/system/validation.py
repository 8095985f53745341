"""Pydantic's findings as our one-line messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from .errors import InputError, suggest

__all__ = ["input_error"]

# What each kind of finding asks for, by pydantic's own names: https://docs.pydantic.dev/latest/errors/validation_errors/
NEEDED = {
    "bool_type": "true or false is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "string_type": "text is needed",
    "tuple_type": "a list is needed",
    "dict_type": "a table is needed",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "use {expected}",
    "too_short": "it needs at least {min_length} entries",
    "too_long": "it may have at most {max_length} entries",
}


def input_error(error: ValidationError, what: str, known: Iterable[str] = ()) -> InputError:
    """The first finding of `error` in one line: the field, its value, and what is needed.

    Args:
        error: from building a pydantic dataclass or model.
        what: names the thing that is built and starts the message, as "recipe"; "" starts with the field itself.
        known: the fields' names, to suggest the near one for an unknown one.
    """
    found = error.errors(include_url=False)[0]
    kind, context = found["type"], found.get("ctx", {})
    name = ".".join(str(part) for part in found["loc"] if isinstance(part, str))
    start = f"{what}: " if what else ""
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return InputError(f"unknown {what or 'field'} key '{name}': {suggest(name, known)}")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InputError(f"{start}{name} is missing")
    if kind == "value_error":  # raised by a validator of ours, with a message for the user
        return InputError(f"{start}{context['error']}")
    needed = NEEDED.get(kind, found["msg"]).format(**context)
    return InputError(f"{start}{name}={_shown(found['input'])}: {needed}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
