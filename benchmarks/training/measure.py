"""Training steps of LipsFormer-Swin-Tiny at 224 pixels: ours, the official code's, and timm's Swin-Tiny.

    git clone https://github.com/IDEA-Research/LipsFormer official
    pip install --no-deps timm
    python benchmarks/training/measure.py --official official > benchmarks/training/README.md

Without --official and without timm, only ours is measured. All models train in one process, a step of each in turn, so
that other load on the machine affects all of them. On a busy machine, threads that wait for each other become many
times slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipsformer
from lipsformer.model.flops import summarize

NAME, CLASSES, SIDE, DROP_PATH = "lipsformer_swin_tiny", 1000, 224, 0.2
OURS, OFFICIAL, STORED, TIMM = "ours", "official", "official, without its activation checkpoints", "timm swin_tiny"
WARM_UP = 5  # steps: the first ones get their memory from the system
STEP = 3  # a step's operations in forward passes: the gradients take two
CPU, PRODUCT_SIDE = torch.device("cpu"), 2048
TORCHVISION = (
    "torchvision",
    *(f"torchvision.{name}" for name in ("datasets", "ops", "ops.misc", "transforms", "transforms.functional")),
)

HEADING = f"""# A training step

Images per second of `{NAME}` at {SIDE} pixels in one training step: forward, cross entropy, backward,
gradient clipping, AdamW; stochastic depth {DROP_PATH}. Medians of {{rounds}} rounds, in each of which every model
makes a step. Ratios are medians over the rounds.

    git clone https://github.com/IDEA-Research/LipsFormer official
    pip install --no-deps timm
    python benchmarks/training/measure.py --official official > benchmarks/training/README.md

To save memory, the official code computes the MLP, the GELUs and the softmax a second time for the gradient. Ours
recomputes blocks only with `grad_checkpointing`. In the third row the official code stores everything that ours stores.
Swin-Tiny has no convolution branches and 10% fewer multiply-adds. [On a GPU](../gpu/README.md) another command
measures the step.
"""

Step = Callable[[], object]


def import_timm() -> types.ModuleType | None:
    """timm, which the official code needs too. It imports torchvision, of which these models use nothing."""
    if importlib.util.find_spec("timm") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # PyPI's does not fit the CPU build of PyTorch
        sys.modules.update({name: mock.MagicMock() for name in TORCHVISION})
    return importlib.import_module("timm.models.swin_transformer")


def import_official(folder: Path) -> Any:
    """The official model's module, by its file: its package imports far more."""
    spec = importlib.util.spec_from_file_location("official_swin", folder / "models" / "lipsformer_swin.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(folder)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_checkpoints(model: nn.Module, official: Any) -> nn.Module:
    """Lets a model of the official code store all activations, as ours does."""
    forward = model.forward

    def stored(image: Tensor) -> Tensor:
        with mock.patch.object(official.checkpoint, "checkpoint", lambda function, x: function(x)):
            out: Tensor = forward(image)
            return out

    model.forward = stored
    return model


def build_models(official: Path | None) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {OURS: lipsformer.create_model(NAME, CLASSES, drop_path=DROP_PATH)}
    timm = import_timm()
    if official is not None:
        module = import_official(official)
        for name in (OFFICIAL, STORED):
            models[name] = module.LipsFormerSwin(num_classes=CLASSES, drop_path_rate=DROP_PATH)
        without_checkpoints(models[STORED], module)
    if timm is not None:
        models[TIMM] = timm.swin_tiny_patch4_window7_224(num_classes=CLASSES, drop_path_rate=DROP_PATH)
    return models


def training_step(model: nn.Module, images: Tensor, *, bfloat16: bool) -> Callable[[], Tensor]:
    """A step on images and random labels: forward, cross entropy, backward, clipping, AdamW. It returns the loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    labels = torch.randint(CLASSES, (len(images),), device=images.device)

    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.detach()

    return step


def seconds(step: Step, device: torch.device, calls: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, of `calls` in a row."""
    started = clock()
    for _ in range(calls):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - started) / calls


def peak(dtype: torch.dtype, device: torch.device, side: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations per second of a square matrix product, the best of 10."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device, clock=clock) for _ in range(10))


def measure(steps: dict[str, Step], device: torch.device, rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of every model's step in each of the interleaved rounds."""
    for step in steps.values():
        seconds(step, device, WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device, calls))
    return times


def print_table(models: dict[str, nn.Module], dtype: torch.dtype, *, batch: int, rounds: int) -> None:
    before = peak(dtype, CPU, PRODUCT_SIDE)
    images = torch.randn(batch, 3, SIDE, SIDE)
    steps = {name: training_step(model, images, bfloat16=dtype == torch.bfloat16) for name, model in models.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    times = measure(steps, CPU, rounds, calls=1)
    cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
    reachable = max(before, peak(dtype, CPU, PRODUCT_SIDE))  # another process may have slowed one of the two
    print("| model | images/s | ours / this |\n|---|---:|---:|")
    for name, values in times.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(values, times[OURS], strict=True))
        print(f"| {name} | {batch / statistics.median(values):.2f} | {ratio:.2f} |")
    operations = STEP * 2 * summarize(NAME).multiply_adds * batch / statistics.median(times[OURS])
    print(
        f"\nOurs runs at {operations / 1e9:.0f} GFLOP/s, {operations / reachable:.0%} of the {reachable / 1e9:.0f} of a"
    )
    print(f"matrix product of {PRODUCT_SIDE} x {PRODUCT_SIDE}. It used {cores:.2f} cores on average.\n")


def print_parts(models: dict[str, nn.Module], dtype: torch.dtype, *, batch: int, rounds: int) -> None:
    """Where the time of our step and of timm's goes, on one thread."""
    import step_parts  # next to this file; `runpy` of this file from elsewhere does not find it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randn(batch, 3, SIDE, SIDE)
    compared = {name: models[name] for name in (OURS, TIMM) if name in models}
    steps = {name: training_step(model, images, bfloat16=dtype == torch.bfloat16) for name, model in compared.items()}
    reachable = peak(dtype, CPU, PRODUCT_SIDE, time.process_time)
    found = step_parts.measure_parts(steps, rounds)
    reachable = max(reachable, peak(dtype, CPU, PRODUCT_SIDE, time.process_time))
    print(step_parts.parts_table(found, reachable))
    precision = str(dtype).removeprefix("torch.")
    print(step_parts.NOTE.format(rounds=rounds, peak=reachable / 1e9, side=PRODUCT_SIDE, precision=precision) + "\n")
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of the official repository")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the official code's, about the versions that it was written for
    torch.manual_seed(0)
    models = build_models(arguments.official)
    print(HEADING.format(rounds=arguments.rounds))
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} virtual cores"
    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16 autocast")):
        print(f"## CPU, {precision}\n\nBatch {arguments.batch}; {machine}.\n")
        print_table(models, dtype, batch=arguments.batch, rounds=arguments.rounds)
        print_parts(models, dtype, batch=arguments.batch, rounds=min(3, arguments.rounds))


if __name__ == "__main__":
    main()
