"""Walking folders of images. Links are followed and loops end; what is left out is counted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

from .left_out import LeftOut, Reason
from .system_files import PREFIXES, is_system_file

__all__ = ["Folder", "find_images", "images_below", "path_state", "read_folder", "walk"]

SUSPECT = (".", *PREFIXES)  # no plain image file begins like this

State = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The entries of one folder: sub-folders, and files with the requested endings, sorted. `left_out` has the others.

    `name` is relative to the root of the walk: "", or ending with "/". `state` is its `path_state` from just before
    it was read. `dangling` means that it holds a broken link: the target may appear without changing the folder.
    """

    name: str
    state: State
    folders: tuple[str, ...]
    files: tuple[str, ...]
    dangling: bool
    left_out: LeftOut


def find_images(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """All image files below `root`, by file name extension, sorted. Hidden files and folders are left out.

    Links are followed. A folder that several links point to is read once, so loops end. What is left out is added to
    `left_out`.

    Raises:
        InputError: if there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a folder of images")
    found = []
    for path, error in images_below(root, LeftOut() if left_out is None else left_out):
        if error is not None:
            raise error
        found.append(path)
    return found


def images_below(root: Path, left_out: LeftOut) -> Iterator[tuple[Path, InputError | None]]:
    """Yields what `find_images` finds, in the same order, while it holds the names of one folder for each level.

    A folder that cannot be read is yielded with its error, and its siblings follow.
    """
    visited = set()
    levels = [iter([("", True)])]
    while levels:
        name, is_folder = next(levels[-1], (None, False))
        if name is None:
            levels.pop()
        elif not is_folder:
            yield root / name, None
        else:
            try:
                folder = read_folder(root, name)
            except InputError as error:
                yield root / name, error
                continue
            if folder.state[:2] in visited:
                left_out.add("visited_link", name)
                continue
            visited.add(folder.state[:2])
            left_out.update(folder.left_out)
            entries = [(entry, False) for entry in folder.files] + [(entry, True) for entry in folder.folders]
            levels.append(iter([(f"{name}{one}/" if inner else name + one, inner) for one, inner in sorted(entries)]))


def walk(root: Path) -> Iterator[Folder]:
    """Yields each folder from `root` down, with the images directly in it. Names in `left_out` start at `root`.

    Raises:
        InputError: if a folder cannot be read.
    """
    visited = set()
    remaining = [""]
    while remaining:
        folder = read_folder(root, remaining.pop())
        if folder.state[:2] in visited:
            left_out = LeftOut()
            left_out.add("visited_link", folder.name)
            folder = dataclasses.replace(folder, folders=(), files=(), dangling=False, left_out=left_out)
        visited.add(folder.state[:2])
        remaining += [f"{folder.name}{name}/" for name in reversed(folder.folders)]
        yield folder


def read_folder(root: Path, name: str = "", endings: tuple[str, ...] = EXTENSIONS) -> Folder:
    """Reads the entries of `root`/`name`; `endings` are those of the files to list, by default images.

    Raises:
        InputError: if it cannot be read.
    """
    path = root / name
    folders, files, others, dangling = [], [], list[tuple[str, Reason]](), False
    try:
        state = path_state(path)
        with os.scandir(path) as found:
            for entry in found:
                lower = entry.name.lower()
                if lower.endswith(endings) and not lower.startswith(SUSPECT) and entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                    continue
                kind, broken = _kind(entry, endings)
                dangling |= broken
                if kind == "folder":
                    folders.append(entry.name)
                elif kind == "file":
                    files.append(entry.name)
                else:
                    others.append((entry.name, kind))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    left_out = LeftOut()
    for entry_name, reason in sorted(others):
        left_out.add(reason, name + entry_name)
    return Folder(
        name=name,
        state=state,
        folders=tuple(sorted(folders)),
        files=tuple(sorted(files)),
        dangling=dangling,
        left_out=left_out,
    )


def _kind(entry: os.DirEntry[str], endings: tuple[str, ...]) -> tuple[Literal["folder", "file"] | Reason, bool]:
    """What an entry is, or why it is left out; and whether it is a broken link that is not hidden."""
    if is_system_file(entry.name):
        return "system", False
    if entry.name.startswith("."):
        return "hidden", False
    try:
        if entry.is_dir():
            return "folder", False
        plain = entry.is_file()
    except OSError:  # a link to itself
        plain = False
    broken = not plain and entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110
    if entry.name.lower().endswith(endings):
        return ("file" if plain or broken else "special_file"), broken  # opening a broken link names it
    return ("broken_link" if broken else "extension"), broken


def path_state(path: Path | str) -> State:
    """Device, inode, mtime and ctime in ns of a folder or file, as int64 values.

    A folder's state changes when an entry is added, removed or renamed, a file's when it is written.
    """
    found = os.stat(path)  # noqa: PTH116 - called 100,000 times; Path objects would be slow
    return _signed(found.st_dev), _signed(found.st_ino), found.st_mtime_ns, found.st_ctime_ns


def _signed(number: int) -> int:
    """A 64-bit `number` reinterpreted as int64."""
    return (number + 2**63) % 2**64 - 2**63
