"""The rows of a table file as text, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

__all__ = [
    "ENDINGS",
    "binary_columns",
    "column_names",
    "import_pyarrow",
    "label_names",
    "parquet_file",
    "read_rows",
]

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LINES = (".jsonl", ".ndjson")
BATCH = 4096  # rows
LONGEST_FIELD = 2**20  # characters

Row = tuple[str | None, ...]


def column_names(path: Path) -> tuple[str, ...]:
    """The columns of a table: of the header, of the schema, or the keys of the first JSON line.

    Raises:
        InputError: if it cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        return tuple(parquet_file(path).schema_arrow.names)
    if path.suffix.lower() in LINES:
        return tuple(next((found for _, found in _json_lines(path)), {}))
    return tuple(next((fields for _, fields in _fields(path)), ()))


def read_rows(path: Path, columns: Sequence[str | None]) -> Iterator[tuple[str, Row]]:
    """Yields each row's place, such as "row 3" or "line 4", and the texts of these columns; None if one is empty.

    Raises:
        InputError: if the table cannot be read, or a row is malformed.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, columns)
    elif path.suffix.lower() in LINES:
        for place, found in _json_lines(path):
            yield place, tuple(None if name is None else _text(path, place, found.get(name)) for name in columns)
    else:
        rows = _fields(path)
        _, header = next(rows)
        at = [None if name is None else header.index(name) for name in columns]
        for place, fields in rows:
            if len(fields) != len(header):
                raise InputError(
                    f"{path}: {place} has {len(fields)} fields, the first row {len(header)}; fix it (quote fields "
                    "that have commas)"
                )
            yield place, tuple(None if index is None else fields[index] or None for index in at)


def import_pyarrow(where: object) -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`. `where` is the file that they are for.

    Raises:
        InputError: if pyarrow is missing.
    """
    require("data", what=str(where))
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa, pq


def parquet_file(path: Path) -> Any:
    """Opens a Parquet file with pyarrow.

    Raises:
        InputError: if pyarrow is missing, or it is no Parquet file.
    """
    pa, pq = import_pyarrow(path)
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); fetch or write it again") from None


def binary_columns(path: Path) -> dict[str, bool]:
    """Columns of a Parquet file with encoded images, and whether they are Hugging Face's structs {bytes, path}."""
    if path.suffix.lower() != ".parquet":
        return {}
    fields = parquet_file(path).schema_arrow
    from pyarrow import types

    found = {}
    for field in fields:
        struct = types.is_struct(field.type) and any(inner.name == "bytes" for inner in field.type)
        if struct or types.is_binary(field.type) or types.is_large_binary(field.type):
            found[field.name] = struct
    return found


def label_names(path: Path, column: str) -> tuple[str, ...]:
    """The class names of a column of integers, as Hugging Face's `datasets` stores them in a Parquet file; or ()."""
    if path.suffix.lower() != ".parquet":
        return ()
    try:
        text = (parquet_file(path).schema_arrow.metadata or {})[b"huggingface"]
        names = json.loads(text)["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _parquet_rows(path: Path, columns: Sequence[str | None]) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    row = 0
    try:
        for batch in parquet_file(path).iter_batches(BATCH, columns=sorted({name for name in columns if name})):
            values = [None if name is None else batch.column(name).to_pylist() for name in columns]
            for index in range(batch.num_rows):
                place = f"row {row}"
                yield place, tuple(None if one is None else _text(path, place, one[index]) for one in values)
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read after row {row} ({error}); fetch or write it again") from None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _text_file(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is not JSON ({error}); write one object per line") from None
            if not isinstance(found, dict):
                raise InputError(f"{path}: line {number} is not an object; write one {{...}} per line")
            yield f"line {number}", found


def _fields(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV or TSV, without empty ones. Excel writes semicolons where the comma is a decimal point."""
    csv.field_size_limit(LONGEST_FIELD)
    with _text_file(path) as file:
        first = next(_lines(path, file), "")
        file.seek(0)
        semicolons = "," not in first and ";" in first
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if semicolons else ","
        rows = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        try:
            for number, fields in enumerate(rows, 1):
                if fields:
                    yield f"row {number}", [field.strip() for field in fields]
        except csv.Error as error:
            raise InputError(f"{path}: line {rows.line_num} is malformed ({error}); fix it") from None


def _text_file(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from None


def _lines(path: Path, file: Any) -> Iterator[str]:
    try:
        for line in file:  # noqa: UP028 - `yield from` would close the file with this generator
            yield line
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None


def _text(path: Path, place: str, value: object) -> str | None:
    """A value as text; None if it is empty, as missing numbers are (NaN)."""
    if value is None or value == "" or value != value:
        return None
    if not isinstance(value, str | int | float):
        raise InputError(
            f"{path}: {place}: {type(value).__name__} found instead of one name or number; one label per image"
        )
    return str(value)
