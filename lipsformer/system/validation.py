"""Pydantic's findings as our one-line messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import InputError, suggest

__all__ = ["input_error", "one_line_errors"]

T = TypeVar("T")

# What each kind of finding asks for, by pydantic's own names: https://docs.pydantic.dev/latest/errors/validation_errors/
NEEDED = {
    "bool_type": "true or false is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "string_type": "text is needed",
    "string_too_short": "it must not be empty",
    "tuple_type": "a list is needed",
    "list_type": "a list is needed",
    "dict_type": "a table is needed",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "use {expected}",
    "too_short": "{min_length} or more entries are needed",
    "too_long": "{max_length} or fewer entries are needed",
}
# The types and bounds of a JSON schema, in words.
NOUNS = {"integer": ("a whole number", "whole numbers"), "number": ("a number", "numbers")}
BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


def one_line_errors(cls: type[T], *, what: str = "", show: Callable[[Any], str] = repr, ranges: bool = True) -> type[T]:
    """Class decorator: the constructor of a pydantic dataclass raises `InputError` for an invalid field.

    `what` and `show` are those of `input_error`; with `ranges`, its messages give the whole range of a number.
    """
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: T, **fields: Any) -> None:
        try:
            init(self, **fields)
        except ValidationError as error:
            schema = TypeAdapter(cls).json_schema()
            raise input_error(error, what, schema["properties"], show=show, schema=schema if ranges else None) from None

    cls.__init__ = checked  # type: ignore[assignment]
    return cls


def input_error(
    error: ValidationError,
    what: str,
    known: Iterable[str] = (),
    *,
    show: Callable[[Any], str] = repr,
    schema: Mapping[str, Any] | None = None,
) -> InputError:
    """The first finding of `error` in one line: the field, its value, and what is needed.

    Args:
        error: from building a pydantic dataclass or model.
        what: names the thing that is built and starts the message, as "recipe"; "" starts with the field itself.
        known: the fields' names, to suggest the nearest for an unknown one.
        show: how the message writes a value.
        schema: the JSON schema of what is built; with it a message gives the whole range of a number.
    """
    found = error.errors(include_url=False)[0]
    kind, context, place = found["type"], found.get("ctx", {}), found["loc"]
    if kind == "missing" and isinstance(place[-1], int):  # an entry of a tuple
        kind, context, place = "too_short", {"min_length": place[-1] + 1}, place[:-1]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    start = f"{what}: " if what else ""
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return InputError(f"unknown {f'{what} key' if what else 'field'} '{name}': {suggest(name, known)}")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InputError(f"{start}{name} is missing")
    if kind == "value_error":  # raised by a validator of ours, with a message for the user
        return InputError(f"{start}{context['error']}")
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    needed = _required(schema or {}, place) or (NEEDED[kind].format(**limits) if kind in NEEDED else found["msg"])
    return InputError(f"{start}{name}={_cut(show(found['input']))}: {needed}")


def _required(schema: Mapping[str, Any], place: Iterable[int | str]) -> str | None:
    """The numbers that a JSON schema allows at `place`, in words; None if it asks for something else there."""
    for part in place:
        schema = _entry(schema, part) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    if "enum" in schema:
        return None
    if schema.get("type") in NOUNS:
        return f"{NOUNS[schema['type']][0]}{_bounds(schema)} is needed"
    items, least, most = _entry(schema, 0), schema.get("minItems"), schema.get("maxItems")
    if items.get("type") in NOUNS and least is not None and most is not None:
        count = f"{least}" if least == most else f"{least} to {most}"
        return f"{count} {NOUNS[items['type']][1]}{_bounds(items)} are needed"
    return None


def _entry(schema: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """The schema of entry `index` of a list: each entry of a tuple of fixed length has its own."""
    fixed = schema.get("prefixItems", [])
    found: Mapping[str, Any] = fixed[index] if index < len(fixed) else schema.get("items", {})
    return found


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {_number(schema['minimum'])} to {_number(schema['maximum'])}"
    texts = [f"{words} {_number(schema[bound])}" for bound, words in BOUNDS.items() if bound in schema]
    return f" {' and '.join(texts)}" if texts else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
