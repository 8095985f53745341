"""Datasets in tar shards: which shards belong to which split, and how their images are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.bundle.class_names import read_classes
from lipsformer.images.open import MinSizeFn, check_bytes, open_image
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

from .braces import expand
from .left_out import LeftOut
from .packed_names import PackedNames
from .reader import SPLITS, Split
from .shard_listing import COMPRESSED, ShardListing
from .walk import read_folder, walk

__all__ = ["CLASS_FILES", "ShardReader", "ShardSplit", "fixed_part", "is_pattern"]

CLASS_FILES = ("classes.txt", "classes.json")
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
        """Looks for shards in `root` and its split folders; None if there are none, or images in sub-folders."""
        found = []
        for folder in ("", *(f"{name}/" for name in read_folder(root).folders if _split_of(name))):
            found += [f"{folder}{name}" for name in read_folder(root, folder, ENDINGS).files]
        if not found or any(folder.name and folder.files for folder in walk(root)):
            return None
        return cls._of(root, found)

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
        return cls._of(root, [path.relative_to(root).as_posix() for path in paths])

    @classmethod
    def _of(cls, root: Path, names: list[str]) -> Self:
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
        return cls(root=root, shards=shards)

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
        texts = self._classes({text for listing in listings for text in listing.texts})
        numbers = {text: number for number, text in enumerate(texts)}
        labels = [np.array([numbers[text] for text in one.texts], np.int64)[one.labels] for one in listings]
        return ShardSplit(
            name=split or "all",
            classes=tuple(texts.values()),
            labels=np.concatenate(labels),
            members=np.arange(sum(counts), dtype=np.int64),
            root=self.root,
            shards=names,
            files=PackedNames.joined(listing.names for listing in listings),
            shard=np.repeat(np.arange(len(listings), dtype=np.int32), counts),
            offsets=np.concatenate([listing.offsets for listing in listings]),
            sizes=np.concatenate([listing.sizes for listing in listings]),
        )

    def _classes(self, texts: set[str]) -> dict[str, str]:
        """The class of each label text, in class order.

        Raises:
            InputError: if a file of class names lacks one for a number, or gives the same to two.
        """
        if not all(text.isascii() and text.isdecimal() for text in texts):
            return {text: text for text in sorted(texts)}
        file = self._class_file()
        names = None if file is None else read_classes(file)
        found: dict[str, str] = {}
        for text in sorted(texts, key=lambda text: (int(text), text)):
            if names is not None and int(text) >= len(names):
                raise InputError(f"{file}: {len(names)} class names, but label {text} occurs; name classes 0 to {text}")
            found[text] = f"class {int(text)}" if names is None else names[int(text)]
        by_name = {name: text for text, name in reversed(found.items())}
        for text, name in found.items():
            if by_name[name] != text:
                raise InputError(f"{file}: '{name}' names both {by_name[name]} and {text}; give each its own name")
        return found

    def _class_file(self) -> Path | None:
        """A file of class names in `root`, or in the folder of the first shard."""
        first = next(iter(self.shards.values()))[0]
        folders = (self.root, (self.root / first).parent)
        return next((folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file()), None)


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
        where, position = self.where(index), int(self.members[index])
        size = int(self.sizes[position])
        check_bytes(size, where)
        try:
            # Opened for each image: worker processes share no handle, and it is cheap compared with decoding.
            with (self.root / self.shards[self.shard[position]]).open("rb", buffering=0) as file:
                file.seek(int(self.offsets[position]))
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror}); check the shard") from None
        if len(content) != size:
            raise InputError(f"{where}: the shard is shorter than when it was listed; fetch or write it again")
        return content

    def open(self, index: int, *, smallest: MinSizeFn | None = None) -> Image.Image:
        """See `Split`."""
        return open_image(self.encoded(index), name=self.where(index), smallest=smallest)


def is_pattern(data: str) -> bool:
    """Whether `data` looks like the path of a shard, or of several with braces."""
    return data.lower().endswith(ENDINGS)


def fixed_part(pattern: str) -> str:
    """The folder of a path or URL, up to where its braces begin."""
    return pattern.partition("{")[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")


def _split_of(name: str) -> str | None:
    """The split that a word of `name` stands for: "imagenet-val-000012" belongs to "val"."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)
