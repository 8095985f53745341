#!/usr/bin/env bash
# DuckDB's distances of lists refuse a Parquet file as soon as one row has no list, even if WHERE excludes the row.
#
# DuckDB 2.0.1, file written by pyarrow 26.0.1. `list_cosine_distance(f, ...)` answers NULL for a row without a list if
# the rows are literals. From a Parquet file, the same rows end the query: "left argument can not contain NULL values".
# Neither `WHERE f IS NOT NULL` nor a filter in an inner query helps, and no list has an empty element. A row without an
# embedding is usual: an image that could not be read.
#
# What to do: cast to an array of the right size: `array_cosine_distance(f::FLOAT[2], ...)` answers NULL for such rows.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'duckdb==2.0.1' 'pyarrow==26.0.1' 2>/dev/null
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

print("DuckDB", duckdb.__version__)
LISTS = "list_cosine_distance(f, [1, 2]::FLOAT[])"
literals = duckdb.sql(f"SELECT {LISTS} FROM (VALUES ([1, 2]::FLOAT[]), (NULL)) AS rows(f)").fetchall()
assert literals == [(0.0,), (None,)], f"CHANGED: literals give {literals}"
for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)):
    pq.write_table(pa.table({"f": pa.array([[1, 2], [3, 4], None], kind)}), "rows.parquet")
    for rows in ("'rows.parquet'", "'rows.parquet' WHERE f IS NOT NULL"):
        try:
            found = duckdb.sql(f"SELECT {LISTS} FROM {rows}").fetchall()
        except duckdb.InvalidInputException as error:
            print(f"{kind}, FROM {rows}: {error}")
        else:
            raise SystemExit(f"CHANGED: {rows} gives {found}")
    found = duckdb.sql("SELECT array_cosine_distance(f::FLOAT[2], [1, 2]::FLOAT[2]) FROM 'rows.parquet'").fetchall()
    assert found[0] == (0.0,) and found[2] == (None,), f"CHANGED: arrays give {found}"
    print(f"{kind}, cast to arrays: {found}")
PYTHON
