"""Tar shards as WebDataset's tools write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.support.image_files import encode

__all__ = ["gray_jpeg", "members", "write_shard"]


def gray_jpeg(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A JPEG of one gray level."""
    return encode("JPEG", Image.new("RGB", size, (level,) * 3))


def members(**labels: object) -> dict[str, bytes]:
    """A JPEG and a .cls for each key; the gray levels are 10, 20, ..."""
    found = {}
    for number, (key, label) in enumerate(labels.items(), 1):
        found |= {f"{key}.jpg": gray_jpeg(10 * number), f"{key}.cls": str(label).encode()}
    return found


def write_shard(path: Path, content: Mapping[str, bytes], mode: str = "w") -> Path:
    """Writes a tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
