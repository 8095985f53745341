"""The members of a tar: images and the label files that belong to them. Links inside the tar are followed."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from lipsformer.datasets.left_out import LeftOut, Reason
from lipsformer.datasets.system_files import is_system_file
from lipsformer.images.open import EXTENSIONS
from lipsformer.system.errors import InputError

__all__ = ["COMPRESSED", "Member", "Place", "image_places", "opened", "read_members"]

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # of those formats

LABELS = ("cls", "json")
LONGEST_LABEL = 2**20  # bytes
LONGEST_CHAIN = 8  # links that lead to links
BLOCK = 512

Place = tuple[int, int]  # offset and size in bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """An image of a tar: `size` bytes from `offset`. `key` is the key of its label files."""

    name: str
    key: str
    offset: int
    size: int


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens an uncompressed tar, and turns what goes wrong while it is read into an `InputError` about `path`.

    Raises:
        InputError: if it cannot be read, is compressed, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            if file.read(6).startswith(MAGICS) or path.name.lower().endswith(COMPRESSED):
                raise InputError(
                    f"{path}: compressed, so its images cannot be read one by one; decompress it to a plain .tar "
                    "(gunzip, unxz, ...): photos hardly shrink anyway"
                )
            file.seek(0)
            yield file
    except tarfile.TarError as error:
        raise InputError(f"{path}: not a complete tar file ({error}); fetch or write it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def image_places(path: Path) -> tuple[dict[str, Place], LeftOut]:
    """Where the images of a tar are, by name and in their order, with or without labels; and what is left out.

    Raises:
        InputError: as `opened`, or if two images have the same name.
    """
    with opened(path) as file:
        found, left_out = _places(file)
    return {name: place for name, place in found.items() if _is_image(name)}, left_out


def read_members(file: BinaryIO, path: Path) -> tuple[list[Member], dict[str, dict[str, bytes]], LeftOut]:
    """Reads the headers of a tar: its images, the contents of the label files by key and ending, and what is left out.

    Raises:
        InputError: if two images have the same name apart from the extension.
        TarError: if it is no complete tar.
    """
    found, left_out = _places(file)
    labels: dict[str, dict[str, bytes]] = {}
    for name, (offset, size) in found.items():
        stem, _, ending = name.rpartition(".")
        if ending.lower() in LABELS and size <= LONGEST_LABEL:
            file.seek(offset)
            labels.setdefault(stem, {})[ending.lower()] = file.read(size)
    samples: dict[str, list[str]] = {}
    for name in found:
        if _is_image(name):
            key = next((stem for stem in _stems(name) if stem in labels), name.rpartition(".")[0])
            samples.setdefault(key, []).append(name)
    images = []
    for key, names in samples.items():
        exact = [name for name in names if name.rpartition(".")[0] == key] or names
        if len(exact) > 1:
            raise InputError(f"{path}: '{exact[1]}' is the second image of that name; rename one")
        offset, size = found[exact[0]]
        images.append(Member(name=exact[0], key=key, offset=offset, size=size))
        for name in names:
            if name != exact[0]:
                left_out.add("stray", f"{path.name}:{name}")
    for key in labels:
        if key not in samples:
            left_out.add("stray", f"{path.name}:{key}.{next(iter(labels[key]))}")
    return images, labels, left_out


def _places(file: BinaryIO) -> tuple[dict[str, Place], LeftOut]:
    """Where the images and labels are, by the members' names, in their order; and the members that are left out."""
    plain: dict[str, Place] = {}  # by normalized name: links may write it in another way
    wanted: dict[str, str] = {}  # from the name of a member to the normalized name of its content
    links: dict[str, str] = {}
    left_out = LeftOut()
    where = Path(getattr(file, "name", "")).name
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
            name, own = member.name, posixpath.normpath(member.name)
            if member.isreg() and not member.issparse():
                plain[own] = (member.offset_data, member.size)
            elif member.islnk():
                links[own] = posixpath.normpath(member.linkname)
            elif member.issym():
                links[own] = posixpath.normpath(posixpath.join(posixpath.dirname(own), member.linkname))
            if member.isdir():
                continue
            reason = _reason(member)
            if reason is None and name in wanted and _is_image(name):
                raise InputError(f"{file.name}: '{name}' is the second image of that name; rename one")
            if reason is None:
                wanted[name] = own
            else:
                left_out.add(reason, f"{where}:{name}")
        # tarfile takes anything that is not a header as the end, so it misses truncated files.
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(f"it ends too early, after {tar.offset} bytes")
    found = {}
    for name, own in wanted.items():
        place = plain.get(_target(own, links))
        if place is None:
            left_out.add("broken_link", f"{where}:{name}")
        else:
            found[name] = place
    return found, left_out


def _reason(member: tarfile.TarInfo) -> Reason | None:
    """Why a member that is no folder is left out, if it is."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if any(map(is_system_file, parts)):
        return "system"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if not _is_image(member.name) and member.name.rpartition(".")[2].lower() not in LABELS:
        return "extension"
    usable = (member.isreg() and not member.issparse()) or member.islnk() or member.issym()
    return None if usable else "special_file"


def _target(name: str, links: Mapping[str, str]) -> str:
    for _ in range(LONGEST_CHAIN):
        if name not in links:
            break
        name = links[name]
    return name


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _stems(name: str) -> Iterator[str]:
    """The name without its last ending, without the last two, and so on; dots of folders do not count."""
    folder, slash, base = name.rpartition("/")
    while "." in base:
        base = base.rpartition(".")[0]
        yield f"{folder}{slash}{base}"
