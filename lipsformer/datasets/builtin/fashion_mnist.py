"""Fashion-MNIST: a Debian package, or the four files that its authors publish."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.console import say
from lipsformer.system.errors import InputError

from .common import BuiltinDataset, Sample, encode_png, run_downloader

__all__ = ["FASHION_MNIST"]

PACKAGE = "dataset-fashion-mnist"
FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package installs it
PREFIXES = {"train": "train", "test": "t10k"}
# The ninth is "T-shirt/top" where it is published: a folder's name cannot hold a slash.
CLASSES = ("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
           "Ankle-boot")  # fmt: skip

FIX = f"on Debian run `apt-get update && apt-get install {PACKAGE}`; elsewhere download the four files \
{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz from https://github.com/zalandoresearch/fashion-mnist and run \
`lipsformer data fetch fashion-mnist --output DIR --source FOLDER`"


def _download(scratch: Path) -> Path:
    if FOLDER.is_dir():
        return FOLDER
    if shutil.which("apt-get") is None:
        raise InputError(f"fashion-mnist can be downloaded on Debian only, with apt-get; {FIX}")
    say(f"downloading the Debian package {PACKAGE} (31 MB)")
    run_downloader(["apt-get", "download", PACKAGE], scratch, FIX)
    package = next(scratch.glob("*.deb"))
    run_downloader(["dpkg-deb", "-x", str(package), str(scratch)], scratch, FIX)
    return scratch / FOLDER.relative_to("/")


def _read(folder: Path) -> Iterator[Sample]:
    for split, prefix in PREFIXES.items():
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
            raise InputError(f"{folder}: images and labels of {prefix} do not match; {FIX}")
        for image, label in zip(images, labels.tolist(), strict=True):
            yield split, CLASSES[label], encode_png(image)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of a gzipped idx file of bytes: a magic number, the dimensions as 32-bit integers, the data."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {FIX}")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file ({error}); {FIX}") from None
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    data = np.frombuffer(content[start:], np.uint8)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(shape) != dimensions or data.size != np.prod(shape):
        raise InputError(f"{path}: not an idx file of {dimensions} dimensions; {FIX}")
    return data.reshape(shape)


FASHION_MNIST = BuiltinDataset(
    summary="grayscale pictures of 10 kinds of clothing, 60,000 and 10,000, 28 pixels, MIT license, 31 MB",
    images=70_000,
    download=_download,
    read=_read,
)
