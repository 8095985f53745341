"""Augmentation on one CPU thread: milliseconds of each kind, compared with a training step, and of each operation.

python benchmarks/augmentation/measure.py > benchmarks/augmentation/README.md
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer import create_model
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train.augment.pipeline import Augmentation
from lipsformer.train.augment.rand_augment import OPERATIONS

BATCHES = ((64, 64, "lipsformer_nano"), (16, 224, "lipsformer_tiny"))  # images, side, the model that is trained
ROUNDS, STEPS, CLASSES = 10, 12, 100
OFF = {"rand_augment": 0.0, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "label_smoothing": 0.1}
KINDS: dict[str, dict[str, float]] = {
    "none": {},
    "RandAugment, m = 9": {"rand_augment": 9},
    "random erasing, p = 0.25": {"random_erasing": 0.25},
    "mixup 0.8 and cutmix 1": {"mixup": 0.8, "cutmix": 1},
    "all of these": {"rand_augment": 9, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1},
}


def least(ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Milliseconds of CPU time of each way: the least of interleaved rounds, which other work hardly affects."""
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:  # the first is a warm-up
                best[name] = min(best[name], (time.process_time() - started) * 1e3)
    return best


def step_time(name: str, pixels: Tensor, labels: Tensor, normalize: PixelNormalize) -> float:
    """Milliseconds of a forward and a backward pass."""
    model = create_model(name, CLASSES, image_size=pixels.shape[1])
    return least({name: lambda: F.cross_entropy(model(normalize(pixels)), labels).backward()}, rounds=3)[name]


def kinds(batch: int, side: int, model: str) -> dict[str, float]:
    """Milliseconds per image of every kind, means over steps; and of the model's step."""
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch,))
    normalize = PixelNormalize(Preprocessing(image_size=side))

    def augment(on: dict[str, float], step: int) -> None:
        augmentation = Augmentation(**{**OFF, **on}, classes=CLASSES)
        augmentation.apply(pixels, labels, augmentation.sample(0, step, batch), normalize)

    measured = dict.fromkeys(KINDS, 0.0)
    for step in range(STEPS):
        for name, value in least({name: functools.partial(augment, on, step) for name, on in KINDS.items()}).items():
            measured[name] += value / STEPS
    measured[model] = step_time(model, pixels, labels, normalize)
    return {name: value / batch for name, value in measured.items()}


def operations(batch: int, side: int) -> dict[str, float]:
    """Milliseconds per image of every operation on a whole batch."""
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    ways: dict[str, Callable[[], object]] = {}
    for name, operation in OPERATIONS.items():
        values = torch.from_numpy(operation.argument(np.full(batch, 0.9), np.ones(batch))).float()
        ways[name] = functools.partial(operation.run, pixels, values)
    return {name: value / batch for name, value in least(ways).items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = [f"{batch} images of {side} px" for batch, side, _ in BATCHES]
    print("# Augmentation on a CPU\n")
    print(f"CPU milliseconds per image, one thread; torch {torch.__version__},")
    print(f"{os.cpu_count()} virtual cores. Least of {ROUNDS} interleaved rounds;")
    print(f"of the kinds the mean over {STEPS} different steps, sampling the parameters included.\n")
    print("    python benchmarks/augmentation/measure.py > benchmarks/augmentation/README.md\n")
    print("| kind | " + " | ".join(f"{head} | of a step" for head in heads) + " |")
    print("|---|" + "---:|" * 2 * len(BATCHES))
    columns = [kinds(*batch) for batch in BATCHES]
    steps = [column[model] for column, (_, _, model) in zip(columns, BATCHES, strict=True)]
    for name in KINDS:
        cells = [f"{column[name]:.3f} | {column[name] / all_:.1%}" for column, all_ in zip(columns, steps, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n`none` normalizes the pixels and builds the targets. A step is a forward and backward pass in float32 of")
    print(" and of ".join(f"{model} ({step:.1f} ms)" for (*_, model), step in zip(BATCHES, steps, strict=True)) + ".\n")
    print(
        "Each operation of RandAugment at strength 9, on a whole batch; a layer runs it on a thirtieth of the images."
    )
    print()
    print("| operation | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(BATCHES))
    tables = [operations(batch, side) for batch, side, _ in BATCHES]
    for name in OPERATIONS:
        print(f"| {name} | " + " | ".join(f"{table[name]:.3f}" for table in tables) + " |")


if __name__ == "__main__":
    main()
