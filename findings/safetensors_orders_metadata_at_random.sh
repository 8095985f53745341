#!/usr/bin/env bash
# safetensors writes the entries of `metadata` in another order at every save, even within one process, so the same weights with the
# same metadata give files with other bytes and other hashes. A seed (PYTHONHASHSEED, torch, NumPy) does not change that.
#
# safetensors 0.8.0, numpy 2.4.6:
# - 32 saves of one tensor with eight entries give 30 or more different files of the same length. With one entry, or none, all are equal.
# - The order of the tensors does not vary: they are sorted by type and name, in whatever order they are given.
# - So a file's hash cannot tell whether weights changed, a cache or a registry keyed by it stores every save again, and a build that
#   compares artifacts fails now and then: with two entries, every other time.
#
# What to do: put everything into one entry as JSON with sorted keys, or hash the tensors instead of the file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'safetensors==0.8.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/saves.py" <<'PYTHON'
import json
import sys

import numpy as np
import safetensors
from safetensors.numpy import save

SAVES = 32
TENSORS = {"b": np.ones(2, np.float32), "a": np.zeros(3, np.float32), "c": np.ones(1, np.int8)}
ENTRIES = {key: f"value {key}" for key in "abcdefgh"}


def files(tensors, metadata):
    """The different files among so many saves."""
    return {save(tensor, metadata) for tensor in tensors for _ in range(SAVES // len(tensors))}


def check(name, found, wanted):
    print(f"{name}: {found}")
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


print("safetensors", safetensors.__version__)
many = files([TENSORS], ENTRIES)
print(f"eight entries: {len(many)} different files of {SAVES}")
check("nearly all differ", len(many) >= 30, True)
check("lengths", len({len(file) for file in many}), 1)
headers = {json.dumps(json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")]), sort_keys=True) for file in many}
check("the same content", len(headers), 1)
check("two entries", len(files([TENSORS], {"a": "1", "b": "2"})), 2)
check("one entry", len(files([TENSORS], {"all": json.dumps(ENTRIES, sort_keys=True)})), 1)
check("no metadata", len(files([TENSORS], None)), 1)
check("tensors in another order", len(files([TENSORS, dict(reversed(TENSORS.items()))], {"a": "1"})), 1)
PYTHON
PYTHONHASHSEED=0 "$work/venv/bin/python" "$work/saves.py"
echo 'As found: the order of the metadata changes from save to save.'
