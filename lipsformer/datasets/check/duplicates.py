"""Duplicates: images of the same picture, in clusters."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .components import Components
from .fingerprint import SCALE, mirrored
from .nearby import candidate_pairs, within
from .scan import Scan

__all__ = ["BLANK", "Cluster", "Kind", "find_clusters"]

# Chosen by looking at pairs: of 70,000 pictures of clothes (28 px, many with the same outline) 158 pairs are nearer, of
# one class each; of 60,000 of CIFAR-10 17, all duplicates; of 1,336 fruit photos with several of each scene one, taken
# within a moment. Copies: JPEG at quality 10 has 0.10, half the size 0.06, brightness times 1.2 0.13.
RADIUS = 0.13
COLOR = 16  # levels of Cb and Cr by which the mean color may differ, unless one of the images is gray
BLANK = 2.0  # levels of contrast below which there is no picture to compare

Kind = Literal["exact", "near", "mirrored"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Two or more images of one picture, by index. `kind` is that of the loosest copy among them.

    "exact" copies are the same file, byte by byte. "near" ones were encoded or scaled again or changed a little.
    `conflict` says whether copies that are not mirrored are in several classes: a mirrored arrow is another sign.
    """

    members: tuple[int, ...]
    kind: Kind
    splits: frozenset[int]
    conflict: bool


def find_clusters(scan: Scan) -> list[Cluster]:
    """The clusters of all splits together, largest first; clusters are of copies of copies too."""
    read = np.flatnonzero(scan.read)
    records = scan.records[read]
    _, first, file = np.unique(records["digest"], return_index=True, return_inverse=True)
    pictures = np.flatnonzero(records["contrast"][first] >= BLANK)
    found = records[first[pictures]]
    same = Components(len(first))
    _unite(same, pictures, found, mirror=False)
    near = same.labels
    _unite(same, pictures, found, mirror=True)
    return _clusters(scan, read, file, near[file], same.labels[file])


def _unite(files: Components, pictures: NDArray[np.int64], records: NDArray[np.void], *, mirror: bool) -> None:
    """Unites files of the same picture; `pictures` are the files that the records belong to."""
    shapes = np.ascontiguousarray(records["shape"])
    others = mirrored(shapes) if mirror else shapes
    for i, j in candidate_pairs(shapes, others):
        new = (i < j) & (files.labels[pictures[i]] != files.labels[pictures[j]])
        i, j = i[new], j[new]
        same = within(shapes, others, (i, j), RADIUS * SCALE) & _same_color(records, i, j)
        files.unite(pictures[i[same]], pictures[j[same]])


def _same_color(records: NDArray[np.void], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.bool_]:
    color, colored = records["color"].astype(np.int16), records["colored"]
    near: NDArray[np.bool_] = (abs(color[i] - color[j]) <= COLOR).all(axis=1) | ~(colored[i] & colored[j])
    return near


def _clusters(
    scan: Scan,
    read: NDArray[np.int64],
    file: NDArray[np.int64],
    near: NDArray[np.int64],
    picture: NDArray[np.int64],
) -> list[Cluster]:
    """The clusters of the images `read` (N,), by the file, near duplicates and picture (N,) that each belongs to."""
    order = np.argsort(picture, kind="stable")
    ends = np.flatnonzero(np.diff(picture[order])) + 1
    found = []
    for group in np.split(order, ends):
        if len(group) < 2:
            continue
        members = read[group]
        one_picture, one_file = len(np.unique(near[group])) == 1, len(np.unique(file[group])) == 1
        labels = np.stack([near[group], scan.labels[members]], axis=1)
        found.append(
            Cluster(
                members=tuple(members.tolist()),
                kind="exact" if one_file else "near" if one_picture else "mirrored",
                splits=frozenset(scan.split_of[members].tolist()),
                conflict=len(np.unique(labels, axis=0)) > len(np.unique(near[group])),
            )
        )
    return sorted(found, key=lambda cluster: (-len(cluster.members), cluster.members))
