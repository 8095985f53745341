"""Images by URL: on web servers, and in object stores (S3, Google Cloud Storage, Azure) through obstore."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Iterator
from typing import Any

from lipsformer.datasets.left_out import LeftOut
from lipsformer.images.formats import EXTENSIONS
from lipsformer.images.open import ImageLimits, check_bytes
from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

__all__ = ["is_object", "is_remote", "object_urls", "read_url"]

WEB, STORES = ("http://", "https://"), ("s3://", "gs://", "az://")


def is_remote(name: str) -> bool:
    """Whether `name` is a URL of an image, or of a prefix in an object store."""
    return name.lower().startswith((*WEB, *STORES))


def is_object(name: str) -> bool:
    """Whether `name` is in an object store."""
    return name.lower().startswith(STORES)


def object_urls(url: str) -> Iterator[str]:
    """The images below a prefix in an object store, by their endings, in the store's order; or `url` if it is one.

    They come as the store lists them, a page at a time. What is left out is reported on stderr.

    Raises:
        InputError: if obstore is missing, or the store cannot be listed.
    """
    if url.lower().endswith(EXTENSIONS):
        yield url
        return
    store, root, prefix = _place(url)
    left_out = LeftOut()
    try:
        for page in store.list(prefix.strip("/") or None):
            for entry in page:
                path = entry["path"]
                if path.lower().endswith(EXTENSIONS):
                    yield f"{root}/{path}"
                else:
                    left_out.add("extension", path)
    except (OSError, ValueError, _errors()) as error:
        raise InputError(f"{url}: cannot be listed ({_reason(error)}); check the URL and the credentials") from None
    left_out.report(url)


def read_url(url: str) -> bytes | None:
    """The encoded image at a URL, whose size is checked first; None if there is none.

    Raises:
        ImageError: if it has more bytes than an image may have.
        InputError: if it cannot be fetched.
    """
    return _read_object(url) if is_object(url) else _read_web(url)


def _read_web(url: str) -> bytes | None:
    from lipsformer.system.download import open_url, read_chunk

    shown, limits = url.partition("?")[0], ImageLimits()
    try:
        response = open_url(url)
    except InputError as error:
        if getattr(error, "status", None) in (404, 410):
            return None
        raise
    content = io.BytesIO()
    with response:
        check_bytes(int(response.headers.get("Content-Length") or 0), shown, limits)
        while chunk := read_chunk(response, shown):
            content.write(chunk)
            check_bytes(len(content.getbuffer()), shown, limits)
    return content.getvalue()


def _read_object(url: str) -> bytes | None:
    store, _, path = _place(url)
    try:
        found = store.get(path)
        check_bytes(found.meta["size"], url)
        return bytes(found.bytes())
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except (OSError, ValueError, _errors()) as error:
        raise InputError(f"{url}: cannot be fetched ({_reason(error)}); check credentials and network") from None


def _place(url: str) -> tuple[Any, str, str]:
    """The store of a URL, the URL of its root, and the path in it. Azure's root is an account and a container."""
    scheme, _, rest = url.partition("://")
    parts = rest.split("/", 2 if scheme.lower() == "az" else 1)
    path = parts.pop() if len(parts) == (3 if scheme.lower() == "az" else 2) else ""
    root = f"{scheme}://{'/'.join(parts)}"
    return _store(root), root, path


@functools.cache
def _store(root: str) -> Any:
    """The object store of a bucket; credentials and endpoint come from its usual environment variables."""
    require("cloud", what=root)
    obstore = importlib.import_module("obstore.store")
    try:
        return obstore.from_url(root)
    except (OSError, ValueError, _errors()) as error:
        raise InputError(f"{root}: not a usable store ({_reason(error)}); check the URL and the credentials") from None


def _errors() -> type[Exception]:
    base: type[Exception] = importlib.import_module("obstore.exceptions").BaseError
    return base


def _reason(error: Exception) -> str:
    return " ".join(str(error).partition("Debug source")[0].split())[:200] or type(error).__name__
