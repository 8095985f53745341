"""The images of a bulk prediction that are most like a photo, by the pooled features of the network."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.images.preprocessing import Pixels
from lipsformer.inference.bulk.sources import list_images
from lipsformer.inference.bulk.writers import FEATURES_SHA256, METADATA
from lipsformer.inference.predictor import Predictor
from lipsformer.system.errors import InputError

__all__ = ["FeatureTable", "Neighbor", "plot_neighbors"]

BATCH = 4096  # rows in memory
COLUMNS = ["name", "label", "score", "features"]

Batch = tuple[NDArray[np.int64], Any, NDArray[np.float32]]  # positions (N,), names and answers, features (N, C)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbor:
    """An image of the table, and its cosine distance from the photo: 0 for the same direction, up to 2."""

    name: str
    label: str
    score: float
    distance: float


class FeatureTable:
    """The rows that `lipsformer predict --features --output` wrote: a Parquet file, or a folder of them.

    `metadata` are the facts about the prediction: `model`, `model_sha256`, `precision` and more. `sha256` is a hash of
    the features of all rows.

    Raises:
        InputError: if it is no such table, has no features, or pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        from lipsformer.datasets.tables.rows import import_pyarrow

        _, self._parquet = import_pyarrow(path)
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not path.exists() or not self.files:
            raise InputError(f"{path}: no such Parquet file; give what `lipsformer predict --features --output` wrote")
        try:
            footers = [self._parquet.read_metadata(file) for file in self.files]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable Parquet ({error})") from None
        facts, schema = [one.metadata or {} for one in footers], footers[0].schema.to_arrow_schema()
        if any(METADATA not in one for one in facts):
            raise InputError(f"{path}: not written by `lipsformer predict --output`")
        if any(FEATURES_SHA256 not in one for one in facts):
            raise InputError(f"{path}: has no features; predict again with --features")
        self.path = path
        self.channels: int = schema.field("features").type.list_size
        self.metadata: dict[str, Any] = json.loads(facts[0][METADATA])
        self.rows = sum(footer.num_rows for footer in footers)
        self.sha256 = hashlib.sha256(b"".join(one[FEATURES_SHA256] for one in facts)).hexdigest()

    def nearest(
        self, features: NDArray[np.float32], top_k: int, among: NDArray[np.int64] | None = None
    ) -> list[Neighbor]:
        """The `top_k` images with the smallest cosine distance from `features` (C,); of equal ones the earlier rows.

        All rows are compared, a few thousand at a time, in float64, or those at the positions `among`. Refused images
        have no features.

        Raises:
            InputError: if the features do not fit, or `top_k` is below 1.
        """
        self.check_query(features, top_k)
        found: list[tuple[float, int, dict[str, Any]]] = []
        for positions, columns, values in self.batches() if among is None else self._groups(among):
            distances = cosine_distances(values, features)
            order = np.argsort(distances, kind="stable")[:top_k]
            few = columns.take(order).to_pylist()
            nearest = zip(distances[order].tolist(), positions[order].tolist(), few, strict=True)
            found = heapq.nsmallest(top_k, [*found, *nearest])
        return [Neighbor(**row, distance=distance) for distance, _, row in found]

    def check_query(self, features: NDArray[np.float32], top_k: int) -> None:
        """Checks a query of `nearest`.

        Raises:
            InputError: if the features do not fit, or `top_k` is below 1.
        """
        if top_k < 1:
            raise InputError(f"--top-k {top_k}: at least 1 is needed")
        if len(features) != self.channels:
            raise InputError(f"{self.path}: has {self.channels} features for each image, the model {len(features)}")

    def batches(self) -> Iterator[Batch]:
        """All images that have features."""
        start = 0
        for file in self.files:
            for batch in self._parquet.ParquetFile(file).iter_batches(BATCH, columns=COLUMNS):
                yield self._batch(batch, np.arange(start, start + len(batch)))
                start += len(batch)

    def _groups(self, positions: NDArray[np.int64]) -> Iterator[Batch]:
        """The rows at these positions, a row group at a time."""
        start = 0
        for file in self.files:
            table = self._parquet.ParquetFile(file)
            for number in range(table.num_row_groups):
                end = start + table.metadata.row_group(number).num_rows
                inside = positions[(positions >= start) & (positions < end)]
                if len(inside):
                    (batch,) = table.read_row_group(number, columns=COLUMNS).combine_chunks().to_batches()
                    yield self._batch(batch.take(inside - start), inside)
                start = end

    def _batch(self, batch: Any, positions: NDArray[np.int64]) -> Batch:
        has = batch.column("features").is_valid()
        kept = batch.filter(has)
        values = kept.column("features").flatten().to_numpy().reshape(-1, self.channels)
        return positions[has.to_numpy(zero_copy_only=False)], kept.select(COLUMNS[:-1]), values


def cosine_distances(values: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cos of the angles between `values` (N, C) and `features` (C,); 1 where one of both is zero."""
    rows, one = values.astype(np.float64), features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    cosines = np.divide(rows @ one, lengths, out=np.zeros(len(rows)), where=lengths > 0)
    distances: NDArray[np.float64] = np.maximum(1 - cosines, 0.0)
    return distances


def plot_neighbors(path: Path, photo: Path, neighbors: Sequence[Neighbor], predictor: Predictor) -> None:
    """Draws the photo and its neighbors, as the network sees them, into the PNG file `path`.

    Raises:
        InputError: if `path` cannot be written.
    """
    import matplotlib as mpl

    from lipsformer.system.plotting import save_figure

    from .report.sheet import Sheet
    from .report.text import NAMES_STYLE, any_script

    with mpl.rc_context(NAMES_STYLE), any_script():
        sheet = Sheet(1 + len(neighbors))
        sheet.head(f"Most like {photo.name}", "Below each photo: its class, and its cosine distance from the first.")
        sheet.photo(0, predictor.prepare(photo))
        sheet.caption(0, "the photo", ("", "", ""), photo.name)
        for place, neighbor in enumerate(neighbors, 1):
            sheet.photo(place, _pixels(neighbor.name, predictor))
            line = ("", f"{neighbor.distance:.4f}", "")
            sheet.caption(place, neighbor.label, line, neighbor.name.replace("\\", "/").rpartition("/")[2])
        save_figure(sheet.figure, path)


def _pixels(name: str, predictor: Predictor) -> Pixels | None:
    """A listed image as the network sees it, None if it is gone. One in a shard or a table is listed again."""
    pieces = name.split(":")
    sources = [":".join(pieces[:count]) for count in range(len(pieces), 0, -1)]
    source = next((source for source in sources if Path(source).is_file()), None)
    listed = () if source is None else list_images([source])
    content = next((image.read() for image in listed if image.name == name), None)
    try:
        return predictor.prepare(content) if isinstance(content, bytes) else None
    except InputError:
        return None
