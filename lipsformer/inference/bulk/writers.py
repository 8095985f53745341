"""The files that rows are written to: Parquet (one file, or a folder of them), JSON lines and CSV."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from lipsformer.datasets.tables.rows import import_pyarrow
from lipsformer.system.atomic import atomic_directory, atomic_write, taken
from lipsformer.system.errors import InputError

from .rows import Row

__all__ = ["Output"]

ENDINGS = (".parquet", ".jsonl", ".csv")
COLUMNS = (
    "name", "status", "detail", "label", "index", "score", "accepted", "certified_radius", "top_k", "width", "height",
)  # fmt: skip
GROUP = 1024  # rows of a Parquet row group
ROWS_PER_FILE = 24 * GROUP  # in a folder
REPEATED = ["status", "label", "top_k.list.element.label"]  # columns that a dictionary makes smaller
# readers filter by these
SELECTIVE = ["name", "status", "label", "index", "score", "accepted", "certified_radius", "width", "height"]
METADATA = b"lipsformer"  # its key in Parquet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where rows go. `ending` is that of the file, or "" for a folder of Parquet files."""

    path: Path
    ending: str

    @classmethod
    def of(cls, text: str) -> Self:
        """The file or folder that `--output` names.

        Raises:
            InputError: if it has another ending, or needs pyarrow, which is missing.
        """
        path = Path(text)
        ending = "" if text.endswith("/") else path.suffix.lower()
        if ending not in ("", *ENDINGS) or not path.name:
            raise InputError(
                f"--output {text}: write a file that ends in {', '.join(ENDINGS)}, or a folder (end it in /)"
            )
        if ending in ("", ".parquet"):
            import_pyarrow(text)
        return cls(path=path, ending=ending)

    def exists(self) -> bool:
        """Whether something is there already; an empty folder does not count."""
        return taken(self.path)

    def check_free(self) -> None:
        """Checks that nothing is there.

        Raises:
            InputError: if something is.
        """
        if self.exists():
            raise InputError(f"{self.path}: exists already; choose another OUT or remove it first")

    def write(self, rows: Iterator[Row], *, features: int | None, metadata: Mapping[str, Any]) -> None:
        """Writes all rows, at once or not at all. The bytes depend on nothing else.

        Args:
            rows: in order.
            features: how many each row has, None for none.
            metadata: plain data for Parquet's metadata.

        Raises:
            InputError: if it cannot be written.
        """
        if self.ending == "":
            with atomic_directory(self.path) as draft:
                for number in itertools.count():
                    first = list(itertools.islice(rows, 1))
                    if number and not first:
                        break
                    some = itertools.chain(first, itertools.islice(rows, ROWS_PER_FILE - 1))
                    _write_parquet(draft / f"part-{number:05d}.parquet", some, features, metadata)
            return
        with atomic_write(self.path) as draft:
            if self.ending == ".parquet":
                _write_parquet(draft, rows, features, metadata)
            elif self.ending == ".jsonl":
                _write_json_lines(draft, rows, features)
            else:
                _write_csv(draft, rows, features)


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
    rows = iter(rows)
    with pq.ParquetWriter(draft, schema, use_dictionary=REPEATED, write_statistics=SELECTIVE) as writer:
        while group := list(itertools.islice(rows, GROUP)):
            columns = pa.RecordBatch.from_pylist([row.columns() for row in group], plain).columns
            if features is not None:
                columns.append(_feature_column(pa, group, features))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            del columns[:], group[:]  # or two groups would be in memory


def _feature_column(pa: Any, group: list[Row], features: int) -> Any:
    nothing = bytes(4 * features)
    values = np.frombuffer(b"".join(row.features or nothing for row in group), np.float32)
    absent = pa.array([row.features is None for row in group])
    return pa.FixedSizeListArray.from_arrays(pa.array(values), features, mask=absent)
