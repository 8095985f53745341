"""Walking folders of images: links are followed, hidden entries left out, and loops end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

__all__ = ["Entries", "Folder", "find_images", "read_entries", "state_of", "walk"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entries:
    """Names of the sub-folders and of the files of some kind directly in a folder, sorted; hidden ones are left out.

    `dangling` tells of a link that leads nowhere yet: what is there may change though the folder does not.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    dangling: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder below the root of a walk: its name relative to that ("" or ending with "/"), and what lies in it.

    `state` is `state_of` the folder just before its entries were read.
    """

    name: str
    state: tuple[int, int, int, int]
    entries: Entries


def find_images(root: Path) -> list[Path]:
    """All image files below `root`, by name endings, sorted; hidden files and folders are left out.

    Links are followed; a folder that several links lead to is read once, so a loop ends.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one that holds images")
    return sorted(root / (folder.name + image) for folder in walk(root) for image in folder.entries.files)


def walk(root: Path) -> Iterator[Folder]:
    """Each folder from `root` down, with the images that lie directly in it.

    Raises:
        InputError: if a folder cannot be read.
    """
    visited = set()
    remaining = [""]
    while remaining:
        name = remaining.pop()
        try:
            state = state_of(root / name)
            if state[:2] in visited:
                continue
        except OSError as error:
            raise _unreadable(error) from None
        visited.add(state[:2])
        entries = read_entries(root / name)
        remaining += [f"{name}{folder}/" for folder in reversed(entries.folders)]
        yield Folder(name=name, state=state, entries=entries)


def read_entries(folder: Path, endings: tuple[str, ...] = EXTENSIONS) -> Entries:
    """What lies directly in `folder`: sub-folders, and files with these name endings, by default images.

    Raises:
        InputError: if it cannot be read.
    """
    folders, files, dangling = [], [], False
    try:
        with os.scandir(folder) as found:
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
        raise _unreadable(error) from None
    return Entries(folders=tuple(sorted(folders)), files=tuple(sorted(files)), dangling=dangling)


def state_of(folder: Path | str) -> tuple[int, int, int, int]:
    """Device, number, time of the last change of the entries, and of any change: equal if no entry came or went."""
    found = os.stat(folder)  # noqa: PTH116 - a hundred thousand of these are no place for Path objects
    return _signed(found.st_dev), _signed(found.st_ino), found.st_mtime_ns, found.st_ctime_ns


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unreadable(error: OSError) -> InputError:
    return InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


def _signed(number: int) -> int:
    """`number` of 64 bits as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63
