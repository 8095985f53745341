"""Images by URL: on web servers and in object stores."""

from __future__ import annotations

import io
from collections.abc import Iterator

from lipsformer.datasets.left_out import LeftOut
from lipsformer.images.formats import EXTENSIONS
from lipsformer.images.open import ImageLimits, check_bytes
from lipsformer.system.errors import InputError

from .stores import is_object, place, store_errors

__all__ = ["WEB", "is_remote", "object_urls", "read_url"]

WEB = ("http://", "https://")


def is_remote(name: str) -> bool:
    """Whether `name` is a URL of an image, or of a prefix in an object store."""
    return name.lower().startswith(WEB) or is_object(name)


def object_urls(url: str) -> Iterator[str]:
    """The images below a prefix in an object store, by their endings, in the store's order; or `url` if it is one.

    They come as the store lists them, a page at a time. What is left out is reported on stderr.

    Raises:
        InputError: if obstore is missing, or the store cannot be listed.
    """
    if url.lower().endswith(EXTENSIONS):
        yield url
        return
    store, root, prefix = place(url)
    left_out = LeftOut()
    with store_errors(url, "listed"):
        for page in store.list(prefix.strip("/") or None):
            for entry in page:
                path = entry["path"]
                if path.lower().endswith(EXTENSIONS):
                    yield f"{root}/{path}"
                else:
                    left_out.add("extension", path)
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
    store, _, path = place(url)
    with store_errors(url, "fetched"):
        try:
            found = store.get(path)
        except FileNotFoundError:
            return None
        check_bytes(found.meta["size"], url)
        return bytes(found.bytes())
