"""Which table files make up a dataset: one file, a pattern with braces, or those in a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from lipsformer.datasets.shards.braces import expand
from lipsformer.datasets.split_names import split_of, split_within
from lipsformer.datasets.walk import read_folder, walk
from lipsformer.system.errors import InputError

from .columns import has_labels
from .rows import ENDINGS, column_names

__all__ = ["METADATA", "Source", "find_sources", "is_table", "sources_of"]

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's image folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A table `name`, relative to the dataset's root. `split` is that of all its rows, if its name says so.

    Its paths are relative to `folder`: "", or ending with "/".
    """

    name: str
    split: str | None = None
    folder: str = ""


def is_table(data: Path) -> bool:
    """Whether `data` is named like a table, or several with braces."""
    return data.name.lower().endswith(ENDINGS) and not data.is_dir()


def sources_of(data: Path) -> tuple[Path, list[Source]]:
    """The root and the tables of a path, which may have braces: "{train,val}.csv".

    Raises:
        InputError: if one does not exist.
    """
    paths = [data] if data.is_file() else [Path(name) for name in expand(str(data))]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such table; give the path of a {', '.join(ENDINGS)} file")
    root = paths[0].parent
    if any(path.parent != root for path in paths):
        raise InputError(f"{data}: its tables are in several folders; put them into one")
    return root, [Source(name=path.name, split=_split(path.stem) if len(paths) > 1 else None) for path in paths]


def find_sources(root: Path, columns: Mapping[str, str]) -> list[Source]:
    """The tables that describe a folder: `metadata` files with labels, or Parquet files; [] if there are none.

    Parquet files next to images in sub-folders are not the dataset.
    """
    top = read_folder(root, "", ENDINGS)
    folders = ["", *(f"{name}/" for name in top.folders if split_of(name))]
    found = []
    for folder in folders:
        files = read_folder(root, folder, METADATA).files
        for name in METADATA:
            if name in files and has_labels(column_names(root / folder / name), columns):
                found.append(Source(name=folder + name, split=split_of(folder), folder=folder))
                break
    if found:
        return found
    names = [
        folder + name
        for folder in (*folders, *(("data/",) if "data" in top.folders else ()))
        for name in read_folder(root, folder, (".parquet",)).files
    ]
    if not names or any(folder.files for folder in walk(root)):
        return []
    splits = {name: _split(name.rpartition("/")[2]) or split_of(name.rpartition("/")[0]) for name in names}
    if len({*splits.values()}) > 1 and None in splits.values():
        lost = next(name for name, split in splits.items() if split is None)
        raise InputError(
            f"{root / lost}: belongs to no split, though others do; put train, val or test into its name, or remove it"
        )
    return [Source(name=name, split=split) for name, split in splits.items()]


def _split(stem: str) -> str | None:
    """The split that a word of a file name stands for: "train-00000-of-00002"."""
    found = split_within(re.sub(r"\.[^.]*$", "", stem))
    return None if found is None else found[0]
