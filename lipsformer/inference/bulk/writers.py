"""The formats of rows: Parquet (one file, or a folder of them), JSON lines and CSV."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.datasets.tables.rows import import_pyarrow

from .rows import Row

__all__ = ["ENDINGS", "FEATURES_SHA256", "METADATA", "PARQUET", "write_file", "write_folder"]

PARQUET = ".parquet"
ENDINGS = (PARQUET, ".jsonl", ".csv")
COLUMNS = (
    "name", "status", "detail", "label", "index", "score", "accepted", "certified_radius", "top_k", "width", "height",
)  # fmt: skip
GROUP = 1024  # rows of a Parquet row group
PIECE = 128  # rows that are Python objects at the same time
ROWS_PER_FILE = 24 * GROUP  # in a folder
REPEATED = ["status", "label", "top_k.list.element.label"]  # columns that a dictionary makes smaller
# readers filter by these
SELECTIVE = ["name", "status", "label", "index", "score", "accepted", "certified_radius", "width", "height"]
METADATA, FEATURES_SHA256 = b"lipsformer", b"lipsformer_features_sha256"  # keys in Parquet


def write_file(
    draft: Path, rows: Iterable[Row], features: int | None, metadata: Mapping[str, Any], ending: str
) -> None:
    """Writes rows into a new file; `ending` is its kind. The bytes depend on nothing else.

    Args:
        draft: the file.
        rows: in order.
        features: how many each row has, None for none.
        metadata: plain data for Parquet's metadata.
        ending: ".parquet", ".jsonl" or ".csv".
    """
    if ending == PARQUET:
        _write_parquet(draft, rows, features, metadata)
    elif ending == ".jsonl":
        _write_json_lines(draft, rows, features)
    else:
        _write_csv(draft, rows, features)


def write_folder(draft: Path, rows: Iterator[Row], features: int | None, metadata: Mapping[str, Any]) -> None:
    """Writes rows into Parquet files of `ROWS_PER_FILE` rows in an empty folder; see `write_file`."""
    for number in itertools.count():
        first = list(itertools.islice(rows, 1))
        if number and not first:
            break
        some = itertools.chain(first, itertools.islice(rows, ROWS_PER_FILE - 1))
        _write_parquet(draft / f"part-{number:05d}{PARQUET}", some, features, metadata)


def _write_json_lines(draft: Path, rows: Iterable[Row], features: int | None) -> None:
    with draft.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            file.write(json.dumps(row.columns() | _features(row, features), ensure_ascii=False) + "\n")


def _write_csv(draft: Path, rows: Iterable[Row], features: int | None) -> None:
    with draft.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *_features(None, features)])
        for row in rows:
            values = row.columns() | _features(row, features)
            table.writerow([_cell(value) for value in values.values()])


def _cell(value: Any) -> Any:
    """Lists as JSON, booleans as in JSON, and nothing for nothing."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list) else value


def _features(row: Row | None, features: int | None) -> dict[str, list[float] | None]:
    if features is None:
        return {}
    found = None if row is None or row.features is None else np.frombuffer(row.features, np.float32).tolist()
    return {"features": found}


def _write_parquet(draft: Path, rows: Iterable[Row], features: int | None, metadata: Mapping[str, Any]) -> None:
    pa, pq = import_pyarrow(draft)
    answer = [("label", pa.string()), ("index", pa.int32()), ("score", pa.float64())]
    fields = [("name", pa.string()), ("status", pa.string()), ("detail", pa.string()), *answer]
    fields += [("accepted", pa.bool_()), ("certified_radius", pa.float64()), ("top_k", pa.list_(pa.struct(answer)))]
    fields += [("width", pa.int32()), ("height", pa.int32())]
    plain = pa.schema(fields)
    schema = plain if features is None else plain.append(pa.field("features", pa.list_(pa.float32(), features)))
    schema = schema.with_metadata({METADATA: json.dumps(metadata, sort_keys=True).encode()})
    rows, digest = iter(rows), hashlib.sha256()

    def batch(piece: list[Row]) -> Any:
        columns = pa.RecordBatch.from_pylist([row.columns() for row in piece], plain).columns
        if features is not None:
            columns.append(_feature_column(pa, piece, features))
            digest.update(b"".join(row.features or b"-" for row in piece))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    with pq.ParquetWriter(draft, schema, use_dictionary=REPEATED, write_statistics=SELECTIVE) as writer:
        pieces = iter(lambda: list(itertools.islice(rows, PIECE)), [])
        while batches := [batch(piece) for piece in itertools.islice(pieces, GROUP // PIECE)]:
            writer.write_table(pa.Table.from_batches(batches))
            del batches  # or two groups would be in memory
        if features is not None:
            writer.add_key_value_metadata({FEATURES_SHA256: digest.hexdigest()})


def _feature_column(pa: Any, piece: list[Row], features: int) -> Any:
    nothing = bytes(4 * features)
    values = np.frombuffer(b"".join(row.features or nothing for row in piece), np.float32)
    absent = pa.array([row.features is None for row in piece])
    return pa.FixedSizeListArray.from_arrays(pa.array(values), features, mask=absent)
