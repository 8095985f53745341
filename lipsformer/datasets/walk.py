"""Walking folders of images. Links are followed, hidden entries are left out, and loops end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

__all__ = ["Folder", "find_images", "folder_state", "read_folder", "walk"]

State = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The entries of one folder, without hidden ones: sub-folders, and files with the requested endings, sorted.

    `name` is relative to the root of the walk: "", or ending with "/". `state` is its `folder_state` from just before
    it was read. `dangling` means that it holds a broken link: the target may appear without changing the folder.
    """

    name: str
    state: State
    folders: tuple[str, ...]
    files: tuple[str, ...]
    dangling: bool


def find_images(root: Path) -> list[Path]:
    """All image files below `root`, by file name extension, sorted. Hidden files and folders are left out.

    Links are followed. A folder that several links point to is read once, so loops end.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a folder of images")
    return sorted(root / (folder.name + image) for folder in walk(root) for image in folder.files)


def walk(root: Path) -> Iterator[Folder]:
    """Yields each folder from `root` down, with the images directly in it.

    Raises:
        InputError: if a folder cannot be read.
    """
    visited = set()
    remaining = [""]
    while remaining:
        folder = read_folder(root, remaining.pop())
        if folder.state[:2] in visited:
            continue
        visited.add(folder.state[:2])
        remaining += [f"{folder.name}{name}/" for name in reversed(folder.folders)]
        yield folder


def read_folder(root: Path, name: str = "", endings: tuple[str, ...] = EXTENSIONS) -> Folder:
    """Reads the entries of `root`/`name`; `endings` are those of the files to list, by default images.

    Raises:
        InputError: if it cannot be read.
    """
    path = root / name
    folders, files, dangling = [], [], False
    try:
        state = folder_state(path)
        with os.scandir(path) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                    continue
                if entry.name.lower().endswith(endings):
                    files.append(entry.name)
                dangling = dangling or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    return Folder(name=name, state=state, folders=tuple(sorted(folders)), files=tuple(sorted(files)), dangling=dangling)


def folder_state(path: Path | str) -> State:
    """Device, inode, mtime and ctime in ns, as int64 values. Equal states mean that no entry was added or removed."""
    found = os.stat(path)  # noqa: PTH116 - called 100,000 times; Path objects would be slow
    return _signed(found.st_dev), _signed(found.st_ino), found.st_mtime_ns, found.st_ctime_ns


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _signed(number: int) -> int:
    """A 64-bit `number` reinterpreted as int64."""
    return (number + 2**63) % 2**64 - 2**63
