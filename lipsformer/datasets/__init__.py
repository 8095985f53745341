"""Labeled images to train and evaluate on: class folders, tar shards and built-in datasets.

A `Reader` finds the splits of a dataset and lists each as a `Split`. Training, resuming and evaluation see only the
`Split`, so they do not depend on how images are stored. The names below are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipsformer.system.extras import import_public

if TYPE_CHECKING:
    from .dataset import (
        HELD_OUT,
        ImageDataset,
        UnlabeledImages,
        open_dataset,
        open_labeled,
        open_reader,
        open_unlabeled,
        relabeled,
    )
    from .left_out import LeftOut
    from .options import DatasetOptions
    from .reader import Split
    from .resolve import check_output, resolve_dataset
    from .walk import find_images

__all__ = [
    "HELD_OUT",
    "DatasetOptions",
    "ImageDataset",
    "LeftOut",
    "Split",
    "UnlabeledImages",
    "check_output",
    "find_images",
    "open_dataset",
    "open_labeled",
    "open_reader",
    "open_unlabeled",
    "relabeled",
    "resolve_dataset",
]

_HOMES = {
    "HELD_OUT": "dataset",
    "DatasetOptions": "options",
    "ImageDataset": "dataset",
    "LeftOut": "left_out",
    "Split": "reader",
    "UnlabeledImages": "dataset",
    "check_output": "resolve",
    "find_images": "walk",
    "open_dataset": "dataset",
    "open_labeled": "dataset",
    "open_reader": "dataset",
    "open_unlabeled": "dataset",
    "relabeled": "dataset",
    "resolve_dataset": "resolve",
}


def __getattr__(name: str) -> Any:
    return import_public(__name__, _HOMES, name)
