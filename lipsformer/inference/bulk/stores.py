"""Object stores (S3, Google Cloud Storage, Azure) through obstore: their objects by URL."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipsformer.system.console import track
from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

__all__ = ["WILD", "any_below", "download", "exists", "is_object", "matching", "place", "store_errors", "upload"]

STORES = ("s3://", "gs://", "az://")
WILD = "*?["
CHUNK = 8 * 1024**2  # bytes of a part of an upload
MOST_CHUNKS = 9_000  # S3 takes 10,000
REQUEST = re.compile(r"Error performing \w+ \S+ in \S+ - ")  # in obstore's messages, before what is wrong
# What obstore asks for credentials when the environment has none: the cloud's own machines, which have them.
NO_CREDENTIALS = re.compile(r"/latest/api/token|/computeMetadata/|/metadata/identity/|Account must be specified")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true to read a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true to read a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or instead of the key "
    "AZURE_SKIP_SIGNATURE=true to read a public container",
}


def is_object(name: str) -> bool:
    """Whether `name` is in an object store."""
    return name.lower().startswith(STORES)


def place(url: str) -> tuple[Any, str, str]:
    """The store of a URL, the URL of its root (a bucket, or Azure's container), and the path in it.

    Raises:
        InputError: if obstore is missing, or the URL or the environment variables do not name a store.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    root = f"{scheme}://{bucket}"
    return _store(root), root, path


@contextlib.contextmanager
def store_errors(url: str, action: str) -> Iterator[None]:
    """Turns the errors of a store into an `InputError`: `url` cannot be `action`, such as "listed"."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, importlib.import_module("obstore.exceptions").BaseError) as error:
        text = " ".join(str(error).partition("Debug source")[0].split())
        if NO_CREDENTIALS.search(text):
            names = CREDENTIALS[url.partition("://")[0].lower()]
            raise InputError(f"{url}: there are no credentials for it; set {names}") from None
        reason = REQUEST.sub("", text)[:200] or type(error).__name__
        raise InputError(
            f"{url}: cannot be {action} ({reason}); check the URL, the credentials and the network"
        ) from None


def exists(url: str) -> bool:
    """Whether there is an object at `url`.

    Raises:
        InputError: if the store does not answer.
    """
    store, _, path = place(url)
    with store_errors(url, "read"):
        try:
            store.head(path)
        except FileNotFoundError:
            return False
    return True


def any_below(url: str) -> bool:
    """Whether there is an object in the folder `url`.

    Raises:
        InputError: if the store cannot be listed.
    """
    store, _, path = place(url)
    with store_errors(url, "listed"):
        return any(map(len, store.list(path, chunk_size=1)))


def matching(pattern: str) -> list[str]:
    """The URLs in one folder that match a pattern such as "s3://bucket/rows.parquet.part-*", sorted.

    Raises:
        InputError: if the store cannot be listed.
    """
    store, root, path = place(pattern)
    with store_errors(pattern, "listed"):
        found = store.list_with_delimiter(posixpath.dirname(path) or None)["objects"]
    return sorted(f"{root}/{one['path']}" for one in found if fnmatch.fnmatchcase(one["path"], path))


def download(url: str, path: Path) -> None:
    """Writes the object at `url` to `path`.

    Raises:
        InputError: if it cannot be fetched or written.
    """
    store, _, key = place(url)
    with store_errors(url, "fetched"), path.open("wb") as file:
        found = store.get(key)
        with track(f"fetch {url}", found.meta["size"]) as advance:
            for chunk in found:
                file.write(chunk)
                advance(len(chunk), "bytes")


def upload(path: Path, url: str) -> None:
    """Writes the file `path` to `url`, whole or not at all: its parts are put together at the end.

    Raises:
        InputError: if the store does not take it.
    """
    store, _, key = place(url)
    size = path.stat().st_size
    chunk = max(CHUNK, -(-size // MOST_CHUNKS))

    def pieces(advance: Any) -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(chunk):
                yield piece
                advance(len(piece), "bytes")

    with store_errors(url, "written"), track(f"write {url}", size) as advance:
        store.put(key, pieces(advance) if size > chunk else path.read_bytes(), chunk_size=chunk)


@functools.cache
def _store(root: str) -> Any:
    """The object store of a bucket; credentials and endpoint come from its usual environment variables."""
    require("cloud", what=root)
    obstore = importlib.import_module("obstore.store")
    with store_errors(root, "used"):
        return obstore.from_url(root)
