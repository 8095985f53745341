"""Files of class names."""

from __future__ import annotations

import json
from pathlib import Path

from lipsformer.system.errors import InputError

from .manifest import class_names

__all__ = ["read_classes"]


def read_classes(path: Path, count: int | None = None) -> tuple[str, ...]:
    """Class names from a file: one to a line, or a JSON list; `count` of them, if that is known.

    Raises:
        InputError: if the file cannot be read, has another number of names, or an empty one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        names = class_names(json.loads(text) if text.startswith("[") else [line.strip() for line in text.split("\n")])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: no class names ({error}); give a text file of one name to a line, or a JSON list of them"
        ) from None
    if not all(names):
        raise InputError(f"{path}: name {names.index('') + 1} of {len(names)} is empty; give each output a name")
    if count is not None and len(names) != count:
        raise InputError(f"{path}: {len(names)} class names for {count} outputs; give one for each, in their order")
    return names
