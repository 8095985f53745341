"""The result of checking a dataset: what was found, for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.held_out import groups_of
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.options import DatasetOptions
from lipsformer.datasets.reader import Split

from .duplicates import Cluster, find_clusters
from .odd import Oddity, SmallClass, find_odd, find_small_classes
from .scan import NAMED, Scan, read_splits, scan

__all__ = ["Check", "check_dataset"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """What `check_dataset` found; images are indices of `scan`.

    `groups` are those with images in several splits, if it was said what a group is (`grouped`).
    """

    data: str
    scan: Scan
    left_out: LeftOut
    clusters: list[Cluster]
    grouped: bool
    groups: dict[str, list[int]]
    small_classes: list[SmallClass]
    odd: dict[Oddity, NDArray[np.int64]]

    @property
    def leaks(self) -> list[Cluster]:
        """Clusters of duplicates with images in several splits."""
        return [cluster for cluster in self.clusters if len(cluster.splits) > 1]

    def leakage(self) -> str:
        """What is in several splits, in words; empty if nothing is."""
        clusters, groups = len(self.leaks), len(self.groups)
        parts = [f"{counted(clusters, 'cluster')} of duplicates"] if clusters else []
        parts += [counted(groups, "group")] if groups else []
        verb = "is" if clusters + groups == 1 else "are"
        return f"{' and '.join(parts)} {verb} in several splits" if parts else ""

    @property
    def conflicts(self) -> list[Cluster]:
        """Clusters of duplicates of several classes."""
        return [cluster for cluster in self.clusters if cluster.conflict]

    @property
    def unreadable(self) -> dict[str, NDArray[np.int64]]:
        """The images that cannot be read, by reason, as `ImageError.reason` and "cannot_be_read"."""
        codes = self.scan.codes["reason"]
        found = {reason: np.flatnonzero(codes == code) for code, reason in enumerate(self.scan.names["reason"])}
        return {reason: images for reason, images in found.items() if reason and len(images)}

    def counts(self) -> NDArray[np.int64]:
        """The number of images (splits, classes), those that cannot be read too."""
        shape = len(self.scan.splits), len(self.scan.classes)
        cells = self.scan.split_of * shape[1] + self.scan.labels
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    def tally(self, what: str) -> dict[str, int]:
        """The number of readable images of each format, mode or profile, most frequent first."""
        names = self.scan.names[what]
        counts = np.bincount(self.scan.codes[what][self.scan.read], minlength=len(names))
        return dict(sorted(zip(names, counts.tolist(), strict=True), key=lambda item: -item[1]))

    def sizes(self) -> dict[str, list[int]]:
        """The smallest, median and largest (width, height) of the readable images, by pixels."""
        records = self.scan.records[self.scan.read]
        if not len(records):
            return {}
        order = np.argsort(records["width"].astype(np.int64) * records["height"], kind="stable")
        chosen = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
        return {name: [int(records[at]["width"]), int(records[at]["height"])] for name, at in chosen.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with every image by name."""
        splits = [split.name for split in self.scan.splits]
        return {
            "data": self.data,
            "images": len(self.scan),
            "leakage": {"duplicates": len(self.leaks), "groups": len(self.groups) if self.grouped else None},
            "splits": {
                split: dict(zip(self.scan.classes, row, strict=True))
                for split, row in zip(splits, self.counts().tolist(), strict=True)
            },
            "left_out": self.left_out.to_dict(),
            "unreadable": {
                reason: [{"image": self.scan.name(i), "problem": self.scan.problems.get(i)} for i in images.tolist()]
                for reason, images in self.unreadable.items()
            },
            "duplicates": [
                {
                    "kind": cluster.kind,
                    "across_splits": len(cluster.splits) > 1,
                    "label_conflict": cluster.conflict,
                    "images": self._images(cluster.members),
                }
                for cluster in self.clusters
            ],
            "groups_across_splits": {name: self._images(images) for name, images in self.groups.items()}
            if self.grouped
            else None,
            "small_classes": [dataclasses.asdict(found) for found in self.small_classes],
            "sizes": self.sizes(),
            **{f"{what}s": self.tally(what) for what in NAMED},
            "turned_by_exif": int(self.scan.turned.sum()),
            "odd": {what: [self.scan.name(index) for index in images.tolist()] for what, images in self.odd.items()},
        }

    def _images(self, indices: Iterable[int]) -> list[dict[str, str]]:
        return [
            {
                "image": self.scan.name(index),
                "split": self.scan.place(index)[0].name,
                "class": self.scan.classes[self.scan.labels[index]],
            }
            for index in indices
        ]


def check_dataset(data: Path, options: DatasetOptions | None = None, title: str | None = None) -> Check:
    """Reads every image of a dataset, of all its splits, and looks for what would spoil a training or its evaluation.

    Args:
        data: the dataset, as for `open_dataset`.
        options: how to read it. `group` names the groups that should not be in several splits.
        title: its name in the result; by default the path.

    Raises:
        InputError: if there is no such dataset, it has no images, or the groups are unknown.
    """
    options = options or DatasetOptions()
    splits, left_out = read_splits(data, options)
    groups = {} if options.group is None else _split_groups(splits, options.group)
    found = scan(splits)
    return Check(
        data=title or str(data),
        scan=found,
        left_out=left_out,
        clusters=find_clusters(found),
        grouped=options.group is not None,
        groups=groups,
        small_classes=find_small_classes(found),
        odd=find_odd(found),
    )


def _split_groups(splits: Sequence[Split], group: str) -> dict[str, list[int]]:
    """The groups with images in several splits: their images, as indices over all splits."""
    names = [groups_of(split, group) for split in splits]
    shared = {name for name, count in Counter(name for part in names for name in set(part)).items() if count > 1}
    found: dict[str, list[int]] = {}
    for index, name in enumerate(name for part in names for name in part):
        if name in shared:
            found.setdefault(name, []).append(index)
    return found


def counted(number: int, what: str) -> str:
    """ "1 image" or "2 images"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
