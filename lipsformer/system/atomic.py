"""Atomic outputs: written next to their final path, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .console import say
from .errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = ["atomic_directory", "atomic_write", "draft_directory", "locked", "sha256_of", "taken", "write_errors"]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`. When the block ends without an error, it is renamed to `path`.

    Raises:
        InputError: if `path` is a folder or cannot be written.
    """
    with write_errors(path):
        if path.is_dir():
            raise InputError(f"{path}: a folder; give the name of a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
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
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder next to `path`. When the block ends without an error, it is renamed to `path`.

    Incomplete folders that killed processes left for the same `path` are removed.

    Raises:
        InputError: if `path` exists or appears in the meantime (an empty folder does not count), or cannot be written.
    """
    with write_errors(path):
        if taken(path):
            raise _exists(path)
    with draft_directory(path) as draft:
        yield draft
        draft.chmod(0o777 & ~_umask())
        for folder, _, files in os.walk(draft):
            for name in files:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if taken(path):
            raise _exists(path)
        draft.rename(path)
        _fsync(path.parent)


@contextlib.contextmanager
def draft_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder next to `path` for temporary files, which is removed at the end.

    Those that killed processes left for the same `path` are removed first.

    Raises:
        InputError: if it cannot be written.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, lock = _new_draft(path)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if lock is not None:
                os.close(lock)


@contextlib.contextmanager
def locked(folder: Path, waiting: str) -> Iterator[None]:
    """Holds the lock of `folder`, which is created. While another process or thread has it, shows `waiting` and waits.

    Not supported on Windows, where it does nothing. `atomic_directory` cannot write into a folder that is locked.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if lock is None and sys.platform != "win32":
        say(waiting)
        lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _new_draft(path: Path) -> tuple[Path, int | None]:
    """An empty folder next to `path`, and the lock that marks it as in use.

    Drafts of killed processes are removed first: a lock ends with its process.
    """
    parent = _lock(path.parent, wait=True)  # so that no process sees a draft before it is locked
    try:
        if parent is not None:
            for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                if (lock := _lock(old)) is not None:
                    shutil.rmtree(old, ignore_errors=True)
                    os.close(lock)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        return draft, _lock(draft)
    finally:
        if parent is not None:
            os.close(parent)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the folder's lock; None if another process has it, or locks are unsupported here."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into an `InputError` about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); check the path, its permissions and the free space"
        ) from None


def taken(path: Path) -> bool:
    """Whether something is at `path` already; an empty folder does not count."""
    return path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir()))


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists already; choose another --output or remove it first")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
