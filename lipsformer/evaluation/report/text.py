"""Text from a user's files, fitted into a plot."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from lipsformer.system.console import printable
from lipsformer.system.plotting import DPI, STYLE

__all__ = ["NAMES_STYLE", "any_script", "elide", "fit", "inches"]

NAMES_STYLE: dict[Any, Any] = {**STYLE, "text.parse_math": False}  # a $ in a name starts no formula
DOTS = "…"


def inches(text: str, font: FontProperties) -> float:
    """The width of `text` in a saved figure; at another resolution, hinted letters differ in width."""
    pixels: float = _renderer().get_text_width_height_descent(text, font, ismath=False)[0]
    return pixels / DPI


def fit(text: str, font: FontProperties, room: float) -> str:
    """Elide `text` to at most `room` inches, but to no less than one character."""
    text = printable(text)[:1000]
    with any_script():
        if inches(text, font) <= room:
            return text
        fits, too_long = 1, len(text)
        while fits < too_long - 1:
            middle = (fits + too_long) // 2
            if inches(elide(text, middle), font) <= room:
                fits = middle
            else:
                too_long = middle
    return elide(text, fits)


def elide(text: str, most: int) -> str:
    """Shorten `text` to at most `most` characters by omitting its middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + DOTS + text[len(text) - tail :]


@contextmanager
def any_script() -> Iterator[None]:
    """Draw characters that the font lacks as boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


@functools.cache
def _renderer() -> RendererBase:
    return FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()  # type: ignore[no-untyped-call,no-any-return]
