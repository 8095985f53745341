"""Markdown tables, readable as plain text too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

from .console import printable

__all__ = ["escape", "markdown_table"]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Formats a table as text, with each column padded to equal width.

    Args:
        headings: one per column.
        rows: their cells. Pass names from users through `escape` first.
        align: one letter per column, "l" or "r"; missing ones mean "l".
    """
    right = [align[column : column + 1] == "r" for column in range(len(headings))]
    widths = [max(3, *map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    rule = ["-" * (width - 1) + ":" if flush else "-" * width for width, flush in zip(widths, right, strict=True)]
    return "\n".join(_line(cells, widths, right) for cells in (headings, rule, *rows))


def escape(name: str) -> str:
    """Escapes a name so that Markdown shows it literally in a cell."""
    return re.sub(r"([\\`*|<\[\]]|\b_|_\b)", r"\\\1", printable(name))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        blank + cell if flush else cell + blank
        for cell, width, flush in zip(cells, widths, right, strict=True)
        for blank in (" " * (width - cell_len(cell)),)
    ]
    return f"| {' | '.join(padded)} |"
