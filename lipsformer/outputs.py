"""Outputs that appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

__all__ = ["publish_directory", "publish_file", "sha256_of"]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; once the block ends without an error, renames it to `path`.

    Raises:
        InputError: if `path` is a folder, or its own folder cannot be made.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder; give the name of a file in it")
    _make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o666 & ~_umask())
        _fsync(draft)
        draft.replace(path)
        _fsync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def publish_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `path` to fill; once the block ends without an error, renames it to `path`.

    Raises:
        InputError: if `path` exists already, or appears meanwhile, and `overwrite` is not set (an empty folder counts
            as free), or its own folder cannot be made.
    """
    if _taken(path) and not overwrite:
        raise _exists(path)
    _make_folder(path.parent)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = draft.with_suffix(".old")
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        for folder, _, files in os.walk(draft):
            for name in files:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if overwrite and _taken(path):
            path.rename(old)  # a folder cannot be renamed onto one that holds files
        try:
            draft.rename(path)
        except OSError:
            if not _taken(path):
                if _taken(old):
                    old.rename(path)
                raise
            raise _exists(path) from None
        _fsync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _remove(old)


def _taken(path: Path) -> bool:
    return path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir()))


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists already; choose another --output or remove it first")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder ({error.strerror}); choose another --output") from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
