"""Datasets in tar shards: which shards belong to which split, and how images are read from them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.bundle.class_names import read_classes
from lipsformer.images.open import MinSizeFn, check_bytes, open_image
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

from .braces import expand
from .layout import SPLITS, Listing
from .names import Names
from .tar_shard import COMPRESSED, Shard
from .walk import read_entries, walk

__all__ = ["CLASS_FILES", "ShardLayout", "ShardSource", "fixed_part", "is_pattern"]

CLASS_FILES = ("classes.txt", "classes.json")
ENDINGS = (".tar", *COMPRESSED)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardSource:
    """N images inside `shards`, whose names are relative to `root`: image i is in number `shard[i]`, at `offsets[i]`.

    `names` are those of the tars' members; `shard` (N,) is int32, `offsets` and `sizes` (N,) are int64.
    """

    root: Path
    shards: tuple[str, ...]
    names: Names
    shard: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def name(self, position: int) -> str:
        """See `Source`."""
        return f"{self.shards[self.shard[position]]}:{self.names.text(position)}"

    def where(self, position: int) -> str:
        """See `Source`."""
        return str(self.root / self.name(position))

    def open(self, position: int, smallest: MinSizeFn | None) -> Image.Image:
        """See `Source`."""
        where, size = self.where(position), int(self.sizes[position])
        check_bytes(size, where)
        try:
            # Opened anew for each image: nothing that worker processes would have to share, and cheap beside decoding.
            with (self.root / self.shards[self.shard[position]]).open("rb", buffering=0) as file:
                file.seek(int(self.offsets[position]))
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror}); check the shard") from None
        if len(content) != size:
            raise InputError(f"{where}: the shard has become shorter than it was; fetch or write it again")
        return open_image(content, name=where, smallest=smallest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """The shards of each split, by names relative to `root`; those of a dataset without splits are under None."""

    root: Path
    shards: dict[str | None, tuple[str, ...]]

    unit = "shards"
    classes = "classes"

    @property
    def splits(self) -> Collection[str]:
        """See `Layout`."""
        return [split for split in self.shards if split is not None]

    @classmethod
    def find(cls, root: Path) -> ShardLayout | None:
        """The shards in `root` and in its split folders; None if there are none, or images in class folders."""
        found = []
        for folder in ("", *(f"{name}/" for name in read_entries(root).folders if _split_of(name))):
            found += [f"{folder}{name}" for name in read_entries(root / folder, ENDINGS).files]
        if not found or any(folder.name and folder.entries.files for folder in walk(root)):
            return None
        return cls._of(root, found)

    @classmethod
    def from_pattern(cls, pattern: Path) -> ShardLayout:
        """The shards that a path with braces names, every one of which must be there.

        Raises:
            InputError: if it is no such path, or a shard is missing.
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
    def _of(cls, root: Path, names: list[str]) -> ShardLayout:
        shards: dict[str | None, tuple[str, ...]] = {}
        for name in sorted(set(names)):
            path = PurePosixPath(name)
            split = _split_of(path.name.partition(".")[0]) or _split_of(path.parent.name)
            shards[split] = (*shards.get(split, ()), name)
        if len(shards) > 1 and None in shards:
            known = ", ".join(sorted(split for split in shards if split))
            raise InputError(
                f"{root / shards[None][0]}: belongs to no split, though others do ({known}); "
                "have its name say train, val or test, or remove it"
            )
        return cls(root=root, shards=shards)

    def place(self, split: str | None) -> str:
        """See `Layout`."""
        return f"{self.root} ({f'{split} ' if split else ''}shards)"

    def example(self, split: str | None) -> str:
        """See `Layout`."""
        return str(self.root / (f"{split}-*.tar" if split else "*.tar"))

    def read(self, split: str | None) -> Listing:
        """See `Layout`."""
        names = self.shards[split]
        shards = []
        with track("listing shards", len(names)) as advance:
            for name in names:
                shards.append(Shard.open(self.root / name))
                advance(1, name)
        counts = [len(shard.names) for shard in shards]
        source = ShardSource(
            root=self.root,
            shards=names,
            names=Names.joined(shard.names for shard in shards),
            shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
            offsets=np.concatenate([shard.offsets for shard in shards]),
            sizes=np.concatenate([shard.sizes for shard in shards]),
        )
        texts = self._classes({text for shard in shards for text in shard.texts})
        numbers = {text: number for number, text in enumerate(texts)}
        renumbered = [np.array([numbers[text] for text in shard.texts], np.int64)[shard.labels] for shard in shards]
        labels = np.concatenate(renumbered)
        _, firsts = np.unique(labels, return_index=True)  # every class has an image, or it would not be known
        return Listing(
            classes=tuple(texts.values()),
            labels=labels,
            places=tuple(source.where(int(first)) for first in firsts),
            source=source,
        )

    def _classes(self, texts: set[str]) -> dict[str, str]:
        """The class that each label text stands for, in the order of the classes.

        Raises:
            InputError: if a file of class names has none for a number, or the same for two.
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
                raise InputError(f"{file}: '{name}' names both {by_name[name]} and {text}; tell the two apart")
        return found

    def _class_file(self) -> Path | None:
        """A file of class names in `root`, or beside the first shard."""
        first = next(iter(self.shards.values()))[0]
        folders = (self.root, (self.root / first).parent)
        return next((folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file()), None)


def is_pattern(data: str) -> bool:
    """Whether `data` looks like the path of a shard, or of many by way of braces."""
    return data.lower().endswith(ENDINGS)


def fixed_part(pattern: str) -> str:
    """The folder of a pattern (of a path or URL) down to where its braces begin."""
    return pattern.partition("{")[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")


def _split_of(name: str) -> str | None:
    """The split that a word of `name` stands for: "imagenet-val-000012" is of "val"."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)
