"""Class names, from files and from metadata."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from lipsformer.system.errors import InputError

__all__ = ["normalized", "parse_class_names", "read_classes"]


def parse_class_names(value: object) -> tuple[str, ...]:
    """Class names from JSON data. Bytes that are not UTF-8, of folders that older versions accepted, become escapes.

    Raises:
        TypeError: if `value` is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise TypeError("its class names are not a list of strings")
    return tuple(label.encode("utf-8", "backslashreplace").decode() for label in value)


def read_classes(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Class names from a file: one per line, or a JSON list; exactly `count` of them, if it is given.

    Raises:
        InputError: if the file cannot be read, has a different number of names, or an empty name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        names = parse_class_names(
            json.loads(text) if text.startswith("[") else [line.strip() for line in text.split("\n")]
        )
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: no class names ({error}); give a text file with one name per line, or a JSON list of names"
        ) from None
    if not all(names):
        raise InputError(f"{path}: name {names.index('') + 1} of {len(names)} is empty; give every output a name")
    if count is not None and len(names) != count:
        raise InputError(f"{path}: {len(names)} class names for {count} outputs; give one per output, in order")
    return names


def normalized(name: str) -> str:
    """The name in Unicode's form NFC: macOS writes file names in NFD, other systems as they are typed."""
    return unicodedata.normalize("NFC", name)
