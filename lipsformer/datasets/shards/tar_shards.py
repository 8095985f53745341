"""Datasets in tar shards: which shards belong to which split, and how their images are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lipsformer.datasets.file_part import read_part
from lipsformer.datasets.labels import classes_of, find_class_file
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.datasets.reader import Split
from lipsformer.datasets.split_names import looks_like_split, split_within
from lipsformer.datasets.walk import read_folder, walk
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

from .braces import expand
from .shard_listing import ShardListing
from .tar_members import COMPRESSED

__all__ = ["ShardReader", "ShardSplit", "fixed_part", "is_pattern"]

ENDINGS = (".tar", *COMPRESSED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardReader:
    """Tar shards: the names of those of each split, relative to `root`; None is the key of a dataset without splits."""

    root: Path
    shards: dict[str | None, tuple[str, ...]]
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)

    @property
    def splits(self) -> Collection[str]:
        """See `Reader`."""
        return [split for split in self.shards if split is not None]

    @classmethod
    def find(cls, root: Path) -> Self | None:
        """Looks for shards in `root` and its split folders; None if there are none, or images in sub-folders.

        Raises:
            InputError: if it is unclear to which split a shard belongs.
        """
        top, left_out = read_folder(root, "", ENDINGS), LeftOut()
        found = list(top.files)
        for folder in top.folders:
            names = [f"{folder}/{name}" for name in read_folder(root, f"{folder}/", ENDINGS).files]
            if _split_of(folder):
                found += names
            elif names:
                left_out.add("split", names[0], len(names))
        if not found and len(top.folders) == 1:
            return cls.find(root / top.folders[0])  # a folder around the dataset
        if not found or any(folder.name and folder.files for folder in walk(root)):
            return None
        return cls._of(root, found, left_out)

    @classmethod
    def from_pattern(cls, pattern: Path) -> Self:
        """The shards that a path with braces stands for, all of which must exist.

        Raises:
            InputError: if the braces are malformed, or a shard is missing.
        """
        root = Path(fixed_part(pattern.as_posix()))
        paths = [Path(name) for name in expand(pattern.as_posix())]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{missing[0]}: no such shard ({len(missing)} of {len(paths)} are missing); check {pattern}"
            )
        return cls._of(root, [path.relative_to(root).as_posix() for path in paths], LeftOut())

    @classmethod
    def _of(cls, root: Path, names: list[str], left_out: LeftOut) -> Self:
        shards: dict[str | None, tuple[str, ...]] = {}
        for name in sorted(set(names)):
            path = PurePosixPath(name)
            split = _split_of(path.name.partition(".")[0]) or _split_of(path.parent.name)
            shards[split] = (*shards.get(split, ()), name)
        if len(shards) > 1 and None in shards:
            known = ", ".join(sorted(split for split in shards if split))
            raise InputError(
                f"{root / shards[None][0]}: belongs to no split, though others do ({known}); "
                "put train, val or test into its name, or remove it"
            )
        suggested = {looks_like_split(name.partition(".")[0]) for name in shards.get(None, ())} - {None}
        if len(suggested) > 1 and "train" in suggested:
            raise InputError(
                f"{root}: its shards look like splits ({shards[None][0]}, ...), not like one set; put train, val or "
                "test into their names, as in train-000.tar"
            )
        return cls(root=root, shards=shards, left_out=left_out)

    def place(self, split: str | None) -> str:
        """See `Reader`."""
        return f"{self.root} ({f'{split} ' if split else ''}shards)"

    def example(self, split: str | None) -> str:
        """See `Reader`."""
        return str(self.root / (f"{split}-*.tar" if split else "*.tar"))

    def read(self, split: str | None) -> ShardSplit:
        """See `Reader`."""
        names = self.shards[split]
        listings = []
        with track("listing shards", len(names)) as advance:
            for name in names:
                listings.append(ShardListing.open(self.root / name))
                advance(1, name)
        counts = [len(listing.names) for listing in listings]
        first = self.shards[next(iter(self.shards))][0]
        texts = classes_of(
            {text for listing in listings for text in listing.texts},
            file=find_class_file(self.root, (self.root / first).parent),
        )
        numbers = {text: number for number, text in enumerate(texts)}
        labels = [np.array([numbers[text] for text in one.texts], np.int64)[one.labels] for one in listings]
        return ShardSplit(
            name=split or "all",
            classes=tuple(texts.values()),
            labels=np.concatenate(labels),
            members=np.arange(sum(counts), dtype=np.int64),
            left_out=LeftOut.joined(listing.left_out for listing in listings),
            root=self.root,
            shards=names,
            files=PackedNames.joined(listing.names for listing in listings),
            shard=np.repeat(np.arange(len(listings), dtype=np.int32), counts),
            offsets=np.concatenate([listing.offsets for listing in listings]),
            sizes=np.concatenate([listing.sizes for listing in listings]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardSplit(Split):
    """Images inside tars: image i is `sizes[i]` bytes from `offsets[i]` of the tar `shards[shard[i]]` below `root`.

    i is a position in storage. `files` are the names of the tars' members; `shard` is int32, `offsets` and `sizes` are
    int64.
    """

    root: Path
    shards: tuple[str, ...]
    files: PackedNames
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def image_name(self, index: int) -> str:
        """See `Split`."""
        position = int(self.members[index])
        return f"{self.shards[self.shard[position]]}:{self.files.text(position)}"

    def where(self, index: int) -> str:
        """See `Split`."""
        return str(self.root / self.image_name(index))

    def encoded(self, index: int) -> bytes:
        """See `Split`."""
        position = int(self.members[index])
        path = self.root / self.shards[self.shard[position]]
        return read_part(path, int(self.offsets[position]), int(self.sizes[position]), self.where(index))


def is_pattern(data: str) -> bool:
    """Whether `data` looks like the path of a shard, or of several with braces."""
    return data.lower().endswith(ENDINGS)


def fixed_part(pattern: str) -> str:
    """The folder of a path or URL, up to where its braces begin."""
    return pattern.partition("{")[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")


def _split_of(name: str) -> str | None:
    """The split that a word of `name` stands for: "imagenet-val-000012" belongs to "val"."""
    found = split_within(name)
    return None if found is None else found[0]
