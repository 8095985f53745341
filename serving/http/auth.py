"""API keys, read from a file that may change while the server runs."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from lipsformer.system.errors import InputError

__all__ = ["KeyRing", "given_keys"]

logger = logging.getLogger("lipsformer.serving")

MIN_LENGTH = 16
CHECK_SECONDS = 1.0


class KeyRing:
    """The keys in a file, one per line. Empty lines and lines that start with # are skipped.

    The file is checked at most once a second. While it cannot be read, or has no key, every request is rejected.

    Raises:
        InputError: if the file cannot be read at first, has no key, or has one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = time.monotonic()
        self._digests = _read(path)
        self._seen = _stamp(path)

    def allows(self, keys: Iterable[str]) -> bool:
        """Whether one of `keys` is valid; every wrong key takes equally long."""
        self._refresh()
        found = False
        for key in keys:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
            for known in self._digests:  # always all of them, so that the time reveals nothing
                found |= hmac.compare_digest(digest, known)
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._digests = _read(self.path)
            logger.info("%s: %d keys are in use now", self.path, len(self._digests))
        except InputError as error:
            self._digests = ()
            logger.error("%s. All requests are rejected until this is fixed", error)


def given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The keys in a request: `Authorization: Bearer KEY`, `X-API-Key: KEY`, or the password of HTTP Basic.

    Basic is how a browser opens the page. A proxy may add its own header to the client's.
    """
    keys = []
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            keys.append(text)
        elif name == b"authorization":
            scheme, _, rest = text.partition(" ")
            if scheme.lower() == "bearer":
                keys.append(rest.strip())
            elif scheme.lower() == "basic":
                with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                    keys.append(base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2])
    return keys


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(
            f"LIPSFORMER_API_KEYS_FILE={path}: cannot be read ({reason}); fix its path, permissions or encoding"
        ) from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"LIPSFORMER_API_KEYS_FILE={path}: no key in it; write one per line")
    if any(len(key) < MIN_LENGTH for key in keys):
        raise InputError(
            f"LIPSFORMER_API_KEYS_FILE={path}: a key is shorter than {MIN_LENGTH} characters; use a longer one"
        )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
