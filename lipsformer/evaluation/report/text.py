"""Names that come from a user's files, made to fit into a picture."""

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
from lipsformer.system.plotting import STYLE

__all__ = ["NAMES_STYLE", "any_script", "elide", "fit", "inches"]

NAMES_STYLE: dict[Any, Any] = {**STYLE, "text.parse_math": False}  # a $ in a name is no formula
DOTS = "…"
DPI = 150  # that `save_figure` draws with: hinted letters are not equally wide at another


def inches(text: str, font: FontProperties) -> float:
    """How wide `text` will be."""
    pixels: float = _renderer().get_text_width_height_descent(text, font, ismath=False)[0]
    return pixels / DPI


def fit(text: str, font: FontProperties, room: float) -> str:
    """The longest form of `text` that is no wider than `room` inches; one character at least."""
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
    """`text` in at most `most` characters, its middle left out."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + DOTS + text[len(text) - tail :]


@contextmanager
def any_script() -> Iterator[None]:
    """Lets names through whose script the font lacks: they become boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


@functools.cache
def _renderer() -> RendererBase:
    return FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()  # type: ignore[no-untyped-call,no-any-return]
