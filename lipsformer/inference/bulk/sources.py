"""The images of a bulk prediction, one after the other: files, folders, patterns, shards, tables, URLs, stdin."""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lipsformer.datasets.file_part import read_part
from lipsformer.datasets.left_out import LeftOut
from lipsformer.datasets.shards.braces import expand
from lipsformer.datasets.shards.tar_members import COMPRESSED, image_places
from lipsformer.datasets.walk import images_below
from lipsformer.images.open import ImageError, read_image
from lipsformer.system.errors import InputError

from .remote import is_remote, object_urls, read_url
from .rows import Refusal, text
from .stores import WILD, is_object

__all__ = ["STDIN", "ListedImage", "list_images"]

STDIN = "-"
SHARDS = (".tar", *COMPRESSED)
PARQUET = ".parquet"
PIECE = 64 * 1024  # bytes of names from stdin


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An image that was listed: a `file`, or a `part` of it (offset and size in bytes), or why there is none."""

    name: str
    file: str = ""
    part: tuple[int, int] | None = None
    refusal: Refusal | None = None

    def read(self) -> bytes | Refusal:
        """The encoded image, whose size is checked first; or why there is none."""
        if self.refusal is not None:
            return self.refusal
        if "\0" in self.file:
            return _missing()
        path = Path(self.file)
        try:
            if is_remote(self.file):
                content = read_url(self.file)
                return Refusal("missing", "there is no image at this URL; check it") if content is None else content
            return read_image(path) if self.part is None else read_part(path, *self.part, self.name)
        except ImageError as error:
            return Refusal.of(error, self.name)
        except InputError as error:
            gone = not is_remote(self.file) and _is_gone(path)
            return _missing() if gone else _unreadable(error, self.name)


def list_images(sources: Iterable[str], column: str | None = None) -> Iterator[ListedImage]:
    """Yields the images of all sources, in the same order each time: as given, and folders sorted.

    What cannot be read is listed with its refusal. What folders and shards leave out is reported on stderr.

    Args:
        sources: image files, folders, patterns such as "photos/*.jpg", .tar shards, Parquet files, URLs of images,
            shards (http, https) and prefixes in object stores (s3, gs, az), or "-" for names of files, folders and
            URLs on stdin, in lines or separated by NUL.
        column: the column of Parquet files with paths or encoded images; by default one with a usual name.

    Raises:
        InputError: if a Parquet file has no such column, pyarrow or obstore is missing, a store cannot be listed, or
            a shard cannot be downloaded.
    """
    for source in sources:
        if source == STDIN:
            for name in _names_on_stdin():
                local = _folder if os.path.isdir(name) else _file  # noqa: PTH112 - no ValueError
                yield from _remote(name) if is_remote(name) else local(name)
        elif is_remote(source):
            yield from _remote(source)
        elif any(sign in source for sign in WILD) and not os.path.lexists(source):
            found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - names stay as given
            if not found:
                yield ListedImage(name=source, refusal=Refusal("missing", "no file matches this pattern; check it"))
            for name in found:
                yield from _listed(name, column)
        else:
            yield from _listed(source, column)


def _listed(name: str, column: str | None) -> Iterator[ListedImage]:
    if os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises if it may not look
        return _folder(name)
    if not os.path.exists(name):  # noqa: PTH110
        return _file(name)
    if name.lower().endswith(SHARDS):
        return _shard(Path(name))
    return _table(Path(name), column) if name.lower().endswith(PARQUET) else _file(name)


def _remote(url: str) -> Iterator[ListedImage]:
    if is_object(url):
        for found in object_urls(url):
            yield ListedImage(name=found, file=found)
    elif url.partition("?")[0].lower().endswith(SHARDS):
        from lipsformer.datasets.shards.remote_shards import fetch_shards

        for shard in expand(str(fetch_shards(url))):
            yield from _shard(Path(shard))
    else:
        yield ListedImage(name=url.partition("?")[0], file=url)  # a query may be a signature


def _file(name: str) -> Iterator[ListedImage]:
    path = str(Path(name))
    yield ListedImage(name=path, file=path)


def _folder(name: str) -> Iterator[ListedImage]:
    root, left_out, empty = Path(name), LeftOut(), True
    for path, error in images_below(root, left_out):
        empty = False
        label = str(path)
        yield ListedImage(name=label, file=label, refusal=None if error is None else _unreadable(error, label))
    left_out.report(root)
    if empty:
        detail = "no images in this folder; give image files, or a folder that holds some"
        yield ListedImage(name=str(root), refusal=Refusal("missing", detail))


def _shard(path: Path) -> Iterator[ListedImage]:
    try:
        places, left_out = image_places(path)
    except InputError as error:
        yield ListedImage(name=str(path), refusal=_unreadable(error, str(path)))
        return
    left_out.report(path)
    for name, place in places.items():
        yield ListedImage(name=f"{path}:{name}", file=str(path), part=place)


def _table(path: Path, column: str | None) -> Iterator[ListedImage]:
    from lipsformer.datasets.tables.columns import image_column
    from lipsformer.datasets.tables.packed_images import PackedImages
    from lipsformer.datasets.tables.rows import binary_columns, column_names, import_pyarrow, read_rows

    import_pyarrow(path)
    try:
        names, binary = column_names(path), binary_columns(path)
    except InputError as error:
        yield ListedImage(name=str(path), refusal=_unreadable(error, str(path)))
        return
    column = image_column(path, names, column, binary)
    if column in binary:
        try:
            packed = PackedImages.open(path, column)
        except InputError as error:
            yield ListedImage(name=str(path), refusal=_unreadable(error, str(path)))
            return
        for row, part in enumerate(zip(packed.offsets.tolist(), packed.sizes.tolist(), strict=True)):
            yield ListedImage(name=f"{path}:{packed.paths.text(row) or f'{row:07d}'}", file=str(packed.file), part=part)
        return
    row = 0
    try:
        for row, (_, (name,)) in enumerate(read_rows(path, (column,))):
            if name is None:
                yield ListedImage(name=f"{path}:{row:07d}", refusal=Refusal("missing", "this row names no file"))
            else:
                yield from _file(str(path.parent / name))
    except InputError as error:
        yield ListedImage(name=f"{path}:{row + 1:07d}", refusal=_unreadable(error, str(path)))


def _names_on_stdin() -> Iterator[str]:
    """The names on stdin, as they come: separated by NUL if the first piece has one, or else in lines."""
    rest, separator = b"", b""
    while piece := os.read(sys.stdin.fileno(), PIECE):  # not through sys.stdin, whose lock would delay the exit
        separator = separator or (b"\0" if b"\0" in piece else b"\n")
        *names, rest = (rest + piece).split(separator)
        yield from map(os.fsdecode, filter(None, (_line(name, separator) for name in names)))
    if rest := _line(rest, separator):
        yield os.fsdecode(rest)


def _line(name: bytes, separator: bytes) -> bytes:
    return name.removesuffix(b"\r") if separator == b"\n" else name


def _missing() -> Refusal:
    return Refusal("missing", "no such image file; check the path")


def _unreadable(error: InputError, name: str) -> Refusal:
    return Refusal("unreadable", text(" ".join(str(error).removeprefix(f"{name}: ").split())))


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
