#!/usr/bin/env bash
# USearch does not find vectors that are in its index, if many copies of one vector were added before them.
#
# usearch 2.26.6, cosine distance, one thread. The index has 500 copies of one vector and then 5,000 random ones. Each of these
# is searched for by itself, so that its distance is 0. Without the copies all of them are found. Behind the copies, more than
# 600 are not among the 64 nearest that the index names, nor are they when the search visits 256 vectors instead of 64:
# equal vectors are linked to each other alone, and a search that arrives there, or the insertion of the next vectors, finds
# no way out. No error or warning says so. The number of copies and their place decide how much is lost, so a test on a sample
# passes. Copies are usual: the picture that a shop shows if it has no photo, a blank scan.
#
# What to do: index copies once, or add noise of 1% of their length to the vectors, and compute the distances of the
# candidates from the vectors without noise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'usearch==2.26.6' 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import usearch
from usearch.index import Index

print("usearch", usearch.__version__)
GENERATOR = np.random.default_rng(0)


def unit(count, channels=32):
    vectors = GENERATOR.standard_normal((count, channels)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


photos = unit(5000)
copies = np.repeat(photos[-1:], 500, axis=0)


def lost(copies, noise, effort):
    """How many of the photos do not find themselves among their 64 nearest vectors."""
    vectors = np.concatenate([copies, photos])
    index = Index(ndim=32, metric="cos", dtype="f16")
    index.add(np.arange(len(vectors)), vectors + np.float32(noise) * unit(len(vectors)), threads=1)
    index.expansion_search = effort
    keys = index.search(photos, 64, threads=1).keys.astype(np.int64)
    nearest = np.einsum("nkc,nc->nk", vectors[keys], photos).max(axis=1)
    return int((nearest < 0.9999).sum())


found = {}
for name, before, noise in (("no copies", copies[:0], 0), ("500 copies", copies, 0), ("500 copies, noise", copies, 0.01)):
    for effort in (64, 256):
        found[name, effort] = lost(before, noise, effort)
        print(f"{name}, {effort} visited: {found[name, effort]:,} of 5,000 photos do not find themselves")
for (name, effort), count in found.items():
    if (count > 250) != (name == "500 copies"):
        sys.exit("CHANGED: other vectors are lost")
PYTHON
echo 'As found: vectors that were added after many copies of another one are lost.'
