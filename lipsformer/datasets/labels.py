"""From the labels that shards and tables hold, names or numbers, to classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lipsformer.bundle.class_names import normalized, read_classes
from lipsformer.system.errors import InputError

__all__ = ["CLASS_FILES", "classes_of", "find_class_file", "label_text"]

CLASS_FILES = ("classes.txt", "classes.json")
NUMBER = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)  # pandas writes integers next to gaps as 3.0


def label_text(text: str) -> str | None:
    """A label in NFC, an integer without leading zeros. None if it is empty or has control characters."""
    text = normalized(text.strip())
    if not text or not text.isprintable():
        return None
    return str(int(text)) if NUMBER.fullmatch(text) and "." not in text else text


def find_class_file(*folders: Path) -> Path | None:
    """The first file of class names in these folders."""
    return next((folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file()), None)


def classes_of(
    texts: Collection[str], *, file: Path | None = None, names: Sequence[str] = (), where: object = None
) -> dict[str, str]:
    """The class of each label text, in class order: that of the numbers, of a given list, or else of the alphabet.

    Args:
        texts: distinct results of `label_text`.
        file: a file with the names of the classes 0, 1, and so on, for labels that are all numbers.
        names: the names of the classes instead, for any labels.
        where: where `names` come from, for messages.

    Raises:
        InputError: if the names lack a label, or give the same name to two numbers.
    """
    numbers = {text: int(match.group(1)) for text in texts if (match := NUMBER.fullmatch(text))}
    if len(numbers) < len(texts):
        return {text: text for text in (_listed(texts, names, where) if names else sorted(texts))}
    if not names and file is not None:
        names, where = read_classes(file), file
    found: dict[str, str] = {}
    by_name: dict[str, int] = {}
    for text, number in sorted(numbers.items(), key=lambda item: item[::-1]):
        if names and number >= len(names):
            raise InputError(f"{where}: {len(names)} class names, but label {text} occurs; name classes 0 to {text}")
        name = normalized(names[number]) if names else f"class {number}"
        if by_name.setdefault(name, number) != number:
            raise InputError(f"{where}: '{name}' names both {by_name[name]} and {number}; give each its own name")
        found[text] = name
    return found


def _listed(texts: Collection[str], names: Sequence[str], where: object) -> list[str]:
    """The texts in the order of `names`."""
    at = {normalized(name): index for index, name in enumerate(names)}
    for text in sorted(texts):
        if text not in at:
            raise InputError(f"{where}: does not list the class '{text}'; add it, or correct the label")
    return sorted(texts, key=at.__getitem__)
