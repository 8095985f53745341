#!/usr/bin/env bash
# Polars does not take a slice of an Arrow column of vectors (fixed-size lists) in which a row is null: "validity mask length
# must be equal to the number of values divided by size". It takes the whole column.
#
# polars 2.1.0, pyarrow 26.0.1. A table of embeddings with one null row, as every reader of failed images has it:
# - `polars.from_arrow`, `polars.Series` and a DataFrame of the whole column work. Of a slice, even one that starts at row 0,
#   all three raise a ComputeError; so do the pieces that `Table.to_batches(max_chunksize=...)` cuts.
# - Slices without a null row work, also with a null among a row's numbers; so do slices of lists of any length, with null rows.
# - Arrow leaves the numbers behind a sliced fixed-size list whole and moves only its offset. Anything that copies mends it:
#   `pyarrow.concat_arrays([slice])`, `take`, `filter`, the IPC stream. `ParquetFile.iter_batches` gives whole arrays.
#
# What to do: copy a slice before you hand it to Polars, or let Polars slice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'polars==2.1.0' 'pyarrow==26.0.1' 2>/dev/null
cat > "$work/slices.py" <<'PYTHON'
import sys

import polars
import pyarrow as pa

ROWS = [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], None, [7.0, 8.0]]
VECTORS, LISTS = pa.list_(pa.float32(), 2), pa.list_(pa.float32())


def taken(column):
    """Whether Polars gives the rows of an Arrow array, or the name of its error."""
    try:
        return polars.from_arrow(column).to_list() == column.to_pylist()
    except polars.exceptions.ComputeError as error:
        return str(error)


def check(name, found, wanted):
    print(f"{name}: {found}")
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


print("polars", polars.__version__, "pyarrow", pa.__version__)
vectors, lists = pa.array(ROWS, VECTORS), pa.array(ROWS, LISTS)
REFUSED = "validity mask length must be equal to the number of values divided by size"
check("the whole column", taken(vectors), True)
check("its first four rows", taken(vectors.slice(0, 4)), REFUSED)
check("rows 2 to 5", taken(vectors.slice(1, 4)), REFUSED)
check("the first batch of a table", taken(pa.table({"x": vectors}).to_batches(max_chunksize=4)[0].column(0)), REFUSED)
check("a slice with a null inside a row", taken(pa.array([[1.0, 2.0], [None, 3.0]], VECTORS).slice(1)), True)
check("a slice without a null", taken(pa.array([row for row in ROWS if row], VECTORS).slice(1, 2)), True)
check("a slice of lists of any length", taken(lists.slice(1, 4)), True)
check("a copy of the slice", taken(pa.concat_arrays([vectors.slice(1, 4)])), True)
PYTHON
"$work/venv/bin/python" "$work/slices.py"
echo 'As found: Polars refuses slices of fixed-size lists with nulls.'
