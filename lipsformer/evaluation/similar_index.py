"""An index of the features of more rows than are compared one by one: an approximate search by usearch."""

from __future__ import annotations

import contextlib
import glob
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.atomic import atomic_write
from lipsformer.system.console import say, track

from .similar import FeatureTable, Neighbor

__all__ = ["EXACT_ROWS", "find_nearest"]

EXACT_ROWS = 1_000_000  # in more, an index finds the candidates
CANDIDATES = 4  # for each neighbor
FEWEST, EFFORT = 64, 4  # candidates; how many rows are visited for each
NOISE = 0.01  # length of what is added to an indexed vector of length 1, so that no two are equal


def find_nearest(table: FeatureTable, features: NDArray[np.float32], top_k: int, *, exact: bool) -> list[Neighbor]:
    """The `top_k` images with the smallest cosine distance from `features` (C,), see `FeatureTable.nearest`.

    If there are more than `EXACT_ROWS`, an index next to the table finds candidates, whose distances are then computed
    exactly. It is built when it is first needed. With `exact`, or without usearch, all rows are compared.

    Raises:
        InputError: if the features do not fit, `top_k` is below 1, or the index cannot be written.
    """
    if exact or table.rows <= EXACT_ROWS:
        return table.nearest(features, top_k)
    table.check_query(features, top_k)
    try:
        usearch = importlib.import_module("usearch.index")
    except ImportError:
        say(f"{table.path}: all {table.rows:,} rows are compared; pip install 'lipsformer[search]' for an index")
        return table.nearest(features, top_k)
    path = table.path.with_name(f"{table.path.name}.{table.sha256[:16]}.usearch")  # other features, another name
    index = _restore(usearch, path, table) or _build(usearch, path, table)
    count = min(max(CANDIDATES * top_k, FEWEST), len(index))
    index.expansion_search = EFFORT * count
    keys = index.search(_unit(features[None])[0], count).keys
    return table.nearest(features, top_k, np.sort(np.asarray(keys, np.int64)))


def _restore(usearch: Any, path: Path, table: FeatureTable) -> Any:
    """The index at `path`, read where it lies; None if it is missing, damaged or does not fit."""
    if not path.is_file():
        return None
    with contextlib.suppress(ValueError, RuntimeError):
        index = usearch.Index.restore(str(path), view=True)
        if index is not None and index.ndim == table.channels and 0 < len(index) <= table.rows:
            return index
    say(f"{path}: damaged; it is built again")
    return None


def _build(usearch: Any, path: Path, table: FeatureTable) -> Any:
    """Builds the index of a table, and removes those of earlier ones.

    With usearch 2.26.6, rows after many copies of one image would be lost: it links equal vectors to each other alone
    (findings/usearch_loses_the_rows_after_many_copies_of_one_vector.sh). Noise keeps copies apart.
    """
    index = usearch.Index(ndim=table.channels, metric="cos", dtype="f16")
    generator = np.random.default_rng(0)
    with track(f"index {table.path}", table.rows) as advance:
        for positions, _, values in table.batches():
            noise = _unit(generator.standard_normal(values.shape, np.float32)) * np.float32(NOISE)
            index.add(positions, _unit(values) + noise)
            advance(len(values), "rows")
    with atomic_write(path) as draft:
        index.save(str(draft))
    for old in path.parent.glob(f"{glob.escape(table.path.name)}.{'?' * 16}.usearch"):
        if old != path:
            old.unlink()
    return index


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (N, C) of length 1 or 0, which float16 holds."""
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    unit = np.zeros_like(values)
    np.divide(values, lengths, out=unit, where=lengths > 0, casting="same_kind")
    return unit
