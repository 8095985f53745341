"""A training small enough for a test: few photos, a model of a few thousand weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from matplotlib.figure import Figure
from safetensors import safe_open

from lipsformer.images.samples import SAMPLES
from lipsformer.train import run_training

__all__ = [
    "CLASSES",
    "TINY",
    "assert_same",
    "blank_plots",
    "contents",
    "make_photos",
    "one_thread",
    "states",
    "train_tiny",
]

CLASSES = ("Granny-Smith", "Orange", "Red-Delicious")
TINY = (
    "model.name=lipsformer_swin_nano",
    "model.image_size=32",
    "model.embed_dim=16",
    "model.depths=[1, 1, 1, 1]",
    "model.num_heads=[1, 1, 2, 2]",
    "model.drop_path=0.2",
    "batch_size=5",
    "ema_decay=0.9",
    "workers=0",
)
TIMINGS = ("images_per_second", "data_wait", "seconds")


def make_photos(root: Path) -> Path:
    """Writes train/ with four photos and val/ with one of each of three classes."""
    for split, count in (("train", 4), ("val", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(SAMPLES / f"{name}.jpg", root / split / name / f"{number}.jpg")
    return root


def train_tiny(
    data: Path, output: Path, *overrides: str, epochs: int | None = 4, plots: bool = False, **options: Any
) -> Path:
    """Trains the tiny model. `overrides` come after its own; plots stay empty files unless they are wanted."""
    with one_thread(), contextlib.nullcontext() if plots else blank_plots():
        return run_training(data, output=output, epochs=epochs, overrides=(*TINY, *overrides), **options)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread, which suits a tiny model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def blank_plots() -> contextlib.AbstractContextManager[object]:
    """Plots are not drawn, which takes longer than a tiny training: their files are empty."""
    return mock.patch.object(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


def states(run: Path) -> list[Path]:
    """The state files of a run, oldest first."""
    return sorted(run.glob("state-*.safetensors"))


def contents(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All tensors of a run's newest state and its checkpoints, and its metrics without the timings."""
    tensors = {}
    for name, path in (("state", states(run)[-1]), *((name, run / f"{name}.safetensors") for name in ("last", "best"))):
        with safe_open(path, framework="pt") as file:
            tensors |= {f"{name}/{key}": file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return tensors, [{key: value for key, value in r.items() if key not in TIMINGS} for r in records]


def assert_same(run: Path, other: Path) -> None:
    """Checks that weights, averages, moments, checkpoints and metrics of two runs are bit-identical."""
    tensors, records = contents(run)
    others, other_records = contents(other)
    assert records == other_records
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
