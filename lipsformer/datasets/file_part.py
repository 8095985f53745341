"""Reading an image that is stored inside of a larger file."""

from __future__ import annotations

from pathlib import Path

from lipsformer.images.open import check_bytes
from lipsformer.system.errors import InputError

__all__ = ["read_part"]


def read_part(path: Path, offset: int, size: int, where: str) -> bytes:
    """The `size` bytes from `offset` of a file. `where` names the image in messages.

    Raises:
        ImageError: if the image is over the limit of bytes.
        InputError: if the file cannot be read, or is too short.
    """
    check_bytes(size, where)
    try:
        # Opened for each image: worker processes share no handle, and it is cheap compared with decoding.
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); check {path}") from None
    if len(content) != size:
        raise InputError(f"{where}: {path.name} is shorter than when it was listed; fetch or write it again")
    return content
