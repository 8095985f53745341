#!/usr/bin/env bash
# Hugging Face datasets cuts the zero bytes off the end of binary values, and of strings, once a dataset has the format "numpy" or
# "torch". Nothing is raised. Without a format, and as "python", "arrow" or "pandas", the values are whole.
#
# datasets 5.2.0, numpy 2.4.6, torch 2.13.0, pyarrow 26.0.1. A column of masks stored as `array.tobytes()`, whose last pixels are 0:
# - `with_format("numpy")` and `with_format("torch")` give fewer bytes, for rows, slices, batches, `map`, a DataLoader and
#   `to_iterable_dataset()` alike; a mask that is 0 everywhere is b"". `numpy.frombuffer(...).reshape(...)` then fails, or, for a
#   shape with a free side, gives a smaller array.
# - torch has no type for bytes, so one would expect the format to leave them alone. It passes through NumPy first, whose fixed-width
#   types `S` and `U` have no length of their own and drop what looks like padding.
# - Lists of binary values are whole in both formats.
# - A file that ends in zero bytes (padding of a tar or an aligned buffer) loses them and has another hash.
#
# What to do: give the format the columns that it is for (`with_format("torch", columns=["label"], output_all_columns=True)`) or read the
# bytes without a format.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'datasets==5.2.0' 'numpy==2.4.6' 'pyarrow==26.0.1' 'torch==2.13.0' 2>/dev/null
cat > "$work/masks.py" <<'PYTHON'
import sys

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

MASKS = [np.array(mask, np.uint8).tobytes() for mask in ([[1, 1], [1, 1]], [[0, 1], [0, 0]], [[0, 0], [0, 0]])]


def lengths(rows):
    """The bytes of each row's mask."""
    return [len(row["mask"]) for row in rows]


def check(name, found, wanted):
    print(f"{name}: {found}")
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


print("datasets", datasets.__version__, "numpy", np.__version__, "torch", torch.__version__)
data = datasets.Dataset.from_dict({"mask": MASKS, "text": ["a\0", "b", "c"], "label": [0, 1, 2]})
WHOLE, CUT = [4, 4, 4], [4, 2, 0]
for name in (None, "python", "pandas"):
    values = list(data.with_format(name)[:]["mask"])
    check(f"format {name}", [len(value) for value in values], WHOLE)
for name in ("numpy", "torch"):
    formatted = data.with_format(name)
    check(f"format {name}, rows", lengths(formatted), CUT)
    check(f"format {name}, a slice", [len(value) for value in formatted[:]["mask"]], CUT)
    check(f"format {name}, streamed", lengths(data.to_iterable_dataset().with_format(name)), CUT)
    check(f"format {name}, map", formatted.map(lambda row: {"bytes": len(row["mask"])}).with_format(None)["bytes"][:], CUT)
    check(f"format {name}, a string", len(formatted[0]["text"]), 1)
    listed = datasets.Dataset.from_dict({"masks": [MASKS]}).with_format(name)[0]["masks"]
    check(f"format {name}, a list of masks", [len(mask) for mask in listed], WHOLE)
batch = next(iter(DataLoader(data.with_format("torch"), batch_size=3)))
check("a DataLoader's batch", [len(value) for value in batch["mask"]], CUT)
some = data.with_format("torch", columns=["label"], output_all_columns=True)
check("the format for another column", (lengths(some), type(some[0]["label"]).__name__), (WHOLE, "Tensor"))
PYTHON
"$work/venv/bin/python" "$work/masks.py"
echo 'As found: the formats "numpy" and "torch" cut trailing zero bytes.'
