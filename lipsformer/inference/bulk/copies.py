"""Sorting the images of a bulk prediction into folders by class: hard links, or copies where links do not work."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from pathlib import Path, PurePosixPath

from lipsformer.system.atomic import atomic_write, write_errors
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

from .rows import OK, Refusal, Row
from .sources import ListedImage
from .state import BulkState

__all__ = ["copy_images"]

REFUSED, NOT_ACCEPTED = "_refused", "_not_accepted"
LONGEST = 200  # bytes of a name


def copy_images(state: BulkState, folder: Path) -> None:
    """Links or copies each image into the folder of its class below `folder`, if it is not there yet.

    Refused images go to "_refused/STATUS", those whose answer is not accepted to "_not_accepted". No file is
    overwritten: if another one has the name already, the image's position among all images is added to it. Images that
    cannot be read have no copy.

    Raises:
        InputError: if a file cannot be written.
    """
    with track(f"copy to {folder}", state.counts().total()) as advance:
        for image, (position, row) in zip(state.images(), state.rows(), strict=True):
            if row.status not in ("missing", "unreadable") and image.file:
                _copy(image, position, folder / _folder_of(row))
            advance(1, "")


def _copy(image: ListedImage, position: int, folder: Path) -> None:
    member = image.name.rpartition(":")[2] if image.part else image.name  # of a shard or a table
    target = folder / _safe(PurePosixPath(member).name)
    for free in (target, target.with_stem(f"{target.stem}-{position}")):
        if _put(image, free):
            return
    raise InputError(f"{free}: another file is there already; choose another --copy-to folder")


def _folder_of(row: Row) -> str:
    if row.status != OK:
        return f"{REFUSED}/{row.status}"
    return NOT_ACCEPTED if row.accepted is False else _safe(row.top_k[0]["label"])


def _safe(name: str) -> str:
    """`name` as one component of a path; different names stay different. A leading _ is for our own folders."""
    quoted = "".join(sign if sign not in "/\0%" else urllib.parse.quote(sign, safe="") for sign in name)
    if quoted[:1] in (".", "_"):
        quoted = f"%{ord(quoted[0]):02X}{quoted[1:]}"
    return os.fsdecode(os.fsencode(quoted)[-LONGEST:]) or "%"


def _put(image: ListedImage, target: Path) -> bool:
    """Puts the image at `target`; False if another file is there."""
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if image.part is None:
            if os.path.lexists(target) and not target.is_dir():
                with contextlib.suppress(OSError):
                    if os.path.samefile(image.file, target):  # noqa: PTH121
                        return True
            else:
                with contextlib.suppress(OSError):  # another file system, or one without links
                    os.link(os.path.realpath(image.file), target)
                    return True
        content = image.read()
        if isinstance(content, Refusal):
            return True
        if os.path.lexists(target):
            return target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content
        with atomic_write(target) as draft:
            draft.write_bytes(content)
    return True
