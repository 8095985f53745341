"""Options of reading a dataset: which folders are splits or classes, the columns of a table, groups and folds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from lipsformer.system.errors import InputError, suggest

__all__ = ["COLUMNS", "DatasetOptions"]

COLUMNS = ("path", "label", "split")
MOST_FOLDS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How to read and split a dataset; by default its layout decides.

    Attributes:
        classes_from: the folder of the class folders, relative to the dataset; none of them is a split then.
        train_split: the split to train on, instead of train.
        val_split: the split to validate on, instead of val or test.
        columns: the columns of a table, by role: path, label and split.
        images: the folder that the paths of a table are relative to, instead of the table's folder.
        classes: a file of class names, for a table with numbers as labels.
        group: images that stay on one side of the automatic split: the column of a table, or a regular expression whose
            first group is searched for in the images' names.
        fold: "2/5" holds out the second of five folds to validate on.
    """

    classes_from: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Path | None = None
    classes: Path | None = None
    group: str | None = None
    fold: str | None = None

    def __post_init__(self) -> None:
        self.fold_numbers()
        for role in self.columns:
            if role not in COLUMNS:
                raise InputError(f"--column {role}={self.columns[role]}: {suggest(role, COLUMNS)}")

    def fold_numbers(self) -> tuple[int, int] | None:
        """The fold to hold out, from 0, and the number of folds; None without one.

        Raises:
            InputError: if `fold` is malformed.
        """
        if self.fold is None:
            return None
        found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", self.fold, re.ASCII)
        number, folds = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= folds <= MOST_FOLDS or folds < 2:
            raise InputError(f"--fold {self.fold}: write it as 2/5, the second of five folds (2 to {MOST_FOLDS} folds)")
        return number - 1, folds

    @property
    def held_out(self) -> dict[str, str]:
        """The options that decide which images are held out, for a checkpoint's metadata."""
        return {name: value for name in ("group", "fold") if (value := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """The options that were given, as plain data for JSON; `from_dict` reads them back."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in data.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` gave."""
        paths = {name: Path(data[name]) for name in ("images", "classes") if name in data}
        return cls(**{**data, **paths})

    @staticmethod
    def parse_columns(texts: Iterable[str]) -> dict[str, str]:
        """Columns by role, from texts such as "label=breed".

        Raises:
            InputError: if one is malformed.
        """
        found = {}
        for text in texts:
            role, equals, name = text.partition("=")
            if not equals or not name:
                raise InputError(f"--column {text}: write it as ROLE=NAME, as in --column label=breed")
            found[role.strip()] = name
        return found
