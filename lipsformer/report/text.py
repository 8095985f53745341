"""Names that come from a user's files, made to fit into a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lipsformer.console import printable
from lipsformer.plotting import STYLE

__all__ = ["NAMES_STYLE", "any_script", "elide", "elide_to_width"]

NAMES_STYLE: dict[Any, Any] = {**STYLE, "text.parse_math": False}  # a $ in a name is no formula
DOTS = "…"


def elide(text: str, most: int) -> str:
    """`text` in at most `most` characters, its middle left out."""
    text = printable(text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + DOTS + text[len(text) - tail :]


def elide_to_width(text: str, width: float, measure: Callable[[str], float]) -> str:
    """The longest form of `text` that `measure` finds no wider than `width`; one character at least."""
    text = printable(text)
    if measure(text) <= width:
        return text
    short, long = 1, min(len(text), 200)
    while short < long - 1:
        middle = (short + long) // 2
        short, long = (middle, long) if measure(elide(text, middle)) <= width else (short, middle)
    return elide(text, short)


@contextmanager
def any_script() -> Iterator[None]:
    """Lets names through whose script the font lacks: they become boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield
