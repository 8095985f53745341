"""What was left out of a dataset: how many entries, for which reason, and the first few names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.console import printable, say

__all__ = ["Examples", "LeftOut", "Reason"]

Reason = Literal[
    "extension", "hidden", "system", "broken_link", "visited_link", "special_file", "missing", "no_label", "stray",
    "split", "repeated",
]  # fmt: skip

MEANINGS: dict[Reason, str] = {
    "extension": "with no image extension",
    "hidden": "hidden (the name starts with a dot)",
    "system": "left by an operating system or a tool (thumbnails, sidecars)",
    "broken_link": "linked to nothing",
    "visited_link": "linked to a folder that was read already",
    "special_file": "neither a plain file nor a folder",
    "missing": "named in the table, but there is no such file",
    "no_label": "without a label",
    "repeated": "named in another row already",
    "stray": "outside the class folders or samples",
    "split": "of a split that is not used",
}
KEPT = 5  # names for each reason


class Examples:
    """The number of entries left out for one reason, and the first few names."""

    def __init__(self, count: int = 0, names: tuple[str, ...] = ()) -> None:
        self.count = count
        self.names = names

    def add(self, count: int, names: tuple[str, ...]) -> None:
        """Counts `count` more entries, of which some are named."""
        self.count += count
        self.names = (*self.names, *names)[:KEPT]


class LeftOut:
    """Entries of a dataset that are not used, by reason: `reasons` maps each to its count and first few names.

    Names are relative to the dataset's root. A folder that was not entered counts as one entry. The memory is bounded.
    """

    def __init__(self) -> None:
        self.reasons: dict[Reason, Examples] = {}

    @classmethod
    def joined(cls, parts: Iterable[LeftOut]) -> Self:
        """The entries of all `parts`."""
        found = cls()
        for part in parts:
            found.update(part)
        return found

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def add(self, reason: Reason, name: str, count: int = 1) -> None:
        """Counts `count` entries, of which `name` is the first."""
        self._add(reason, count, (name,))

    def count(self, reason: Reason) -> int:
        """The number of entries left out for `reason`."""
        return self.reasons[reason].count if reason in self.reasons else 0

    def update(self, other: LeftOut, prefix: str = "") -> None:
        """Counts all of `other`'s entries too; `prefix` goes before their names."""
        for reason, found in other.reasons.items():
            self._add(reason, found.count, tuple(prefix + name for name in found.names))

    def _add(self, reason: Reason, count: int, names: tuple[str, ...]) -> None:
        self.reasons.setdefault(reason, Examples()).add(count, names)

    def __str__(self) -> str:
        return "; ".join(line.removeprefix(": ") for line in self.lines(""))

    def lines(self, where: object) -> list[str]:
        """A line for each reason, with the count and an example. `where` is the dataset."""
        return [
            f"{where}: {found.count:,} {'entry' if found.count == 1 else 'entries'} left out, {MEANINGS[reason]}: "
            f"{printable(found.names[0])}{', ...' if found.count > 1 else ''}"
            for reason, found in self.reasons.items()
        ]

    def report(self, where: object) -> None:
        """Prints `lines` on stderr."""
        for line in self.lines(where):
            say(line, always=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {reason: {"count": found.count, "examples": list(found.names)} for reason, found in self.reasons.items()}

    def to_array(self) -> NDArray[np.uint8]:
        """The content as bytes, for a cached listing; `from_array` reads them back."""
        return np.frombuffer(json.dumps(self.to_dict()).encode(), np.uint8)

    @classmethod
    def from_array(cls, array: NDArray[np.uint8]) -> Self:
        """Reads what `to_array` gave.

        Raises:
            ValueError: if it is something else.
        """
        found = cls()
        try:
            for reason, entry in json.loads(array.tobytes()).items():
                found.reasons[reason] = Examples(int(entry["count"]), tuple(map(str, entry["examples"])))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from None
        if not found.reasons.keys() <= MEANINGS.keys():
            raise ValueError("unknown reasons")
        return found
