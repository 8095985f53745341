"""From a DATA argument to a dataset on disk."""

from __future__ import annotations

from pathlib import Path

from lipsformer.system.console import say
from lipsformer.system.errors import InputError, suggest
from lipsformer.system.hardware import cache_folder

from .builtin import BUILT_IN, fetch_dataset
from .shards.remote_shards import fetch_shards, is_url
from .shards.tar_shards import is_pattern
from .tables import is_table

__all__ = ["check_output", "resolve_dataset"]


def resolve_dataset(data: str) -> Path:
    """The dataset that `data` names: a folder, a built-in dataset, a table of labels, or tar shards by path or URL.

    Several shards are named with braces. Built-in and remote datasets are downloaded on first use into `datasets/` and
    `shards/` of the cache folder, $LIPSFORMER_CACHE, by default ~/.cache/lipsformer. For shards the result is their
    path, with braces.

    Raises:
        InputError: if `data` is none of these (a similar name is suggested), or cannot be downloaded.
    """
    if is_url(data):
        return fetch_shards(data)
    path = Path(data)
    if path.is_dir() or is_pattern(data) or is_table(path):
        return path
    if data not in BUILT_IN:
        kind = "a file, not a folder" if path.exists() else "no such folder"
        raise InputError(f"{data}: {kind}, nor a built-in dataset; {suggest(data, BUILT_IN)}")
    cached = cache_folder() / "datasets" / data
    if not cached.is_dir():
        say(f"downloading {data} ({BUILT_IN[data].summary}) into {cached}")
        try:
            fetch_dataset(data, cached)
        except InputError:
            if not cached.is_dir():  # else another process has just finished it
                raise
    return cached


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Checks that an output is outside of the folders that are read: later its files would be part of the dataset.

    Raises:
        InputError: if it is inside one of them.
    """
    for folder in inputs:
        if output is not None and folder is not None and folder.is_dir():
            inside, outer = output.resolve(), folder.resolve()
            if outer in (inside, *inside.parents):
                raise InputError(f"--output {output}: inside of the input {folder}; choose a folder outside of it")
