"""Brace expansion as in shells, nested too: `{train,val}` and `{000..146}`.

Not PyPI's `braceexpand`, last released in 2021: it accepts `{a}` silently, and a typo such as `{0..999999999}` fills
the memory before the first name appears.
"""

from __future__ import annotations

import itertools
import re

from lipsformer.system.errors import InputError

__all__ = ["expand"]

MOST = 100_000
RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})", re.ASCII)


def expand(pattern: str) -> list[str]:
    """All names that `pattern` stands for, in order. Ranges keep their leading zeros.

    Raises:
        InputError: if braces are unbalanced, hold neither commas nor a range, or give too many names.
    """
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise InputError(f"{pattern}: unbalanced '}}'; write {{a,b}} or {{000..146}}")
        return [pattern]
    commas, end = _pair(pattern, start)
    inside = pattern[start + 1 : end]
    if commas:
        edges = [start, *commas, end]
        middles = [name for left, right in itertools.pairwise(edges) for name in expand(pattern[left + 1 : right])]
    else:
        middles = _range(inside, pattern)
    tails = expand(pattern[end + 1 :])
    if len(middles) * len(tails) > MOST:
        raise InputError(f"{pattern}: more than {MOST} names; make its ranges smaller")
    return [pattern[:start] + middle + tail for middle in middles for tail in tails]


def _pair(pattern: str, start: int) -> tuple[list[int], int]:
    """Positions of the commas and of the end of the brace at `start`."""
    depth, commas = 0, list[int]()
    for at in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[at], 0)
        if depth == 0:
            return commas, at
        if depth == 1 and pattern[at] == ",":
            commas.append(at)
    raise InputError(f"{pattern}: unbalanced '{{'; write {{a,b}} or {{000..146}}")


def _range(inside: str, pattern: str) -> list[str]:
    found = RANGE.fullmatch(inside)
    if found is None:
        raise InputError(f"{pattern}: '{{{inside}}}' is neither a list nor a range; write {{a,b}} or {{000..146}}")
    first, last = found.groups()
    step = 1 if int(first) <= int(last) else -1
    if abs(int(last) - int(first)) >= MOST:
        raise InputError(f"{pattern}: more than {MOST} names; make its ranges smaller")
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 1
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]
