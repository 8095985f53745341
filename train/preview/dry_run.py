"""`train --dry-run`: what a training would be and cost, from a few of its steps. Nothing is written."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lipsformer.model.flops import count_multiply_adds
from lipsformer.system.hardware import peak_memory
from lipsformer.train.listeners.progress import duration
from lipsformer.train.loop import take_step
from lipsformer.train.optim.schedule import learning_rate
from lipsformer.train.run import open_run
from lipsformer.train.training import Training

__all__ = ["describe_training", "report_lines"]

STEPS = 3  # measured, after one to warm up


def describe_training(data: Path, *, output: Path, device: str = "auto", **choices: Any) -> dict[str, Any]:
    """Opens the training of `run_training` with these arguments, takes four of its steps, and describes it.

    `output` is left as it is: absent, or with a training that would be resumed. `choices` are those of `run_training`:
    model, recipe, epochs, overrides, teacher, options, resume.

    Returns:
        `model` (name, parameters, multiply_adds for one image, image_size), `data` (train, validation, classes,
        left_out), `steps` (done, all, epochs), `device`, and `step`: its images, the memory in bytes (on a GPU the
        allocated maximum, else that of the process; None where it is unknown), and the seconds of a step, of
        validating, and to the end. `step` is None for a probe or a finished training, which have none.

    Raises:
        InputError: as `run_training`.
    """
    with open_run(data, output=output, device=device, **{"resume": True} | choices) as run:
        config, sampler = run.state.model.config, run.context.sampler
        train, validation = run.dataset.train, run.dataset.validation
        return {
            "model": {
                "name": run.recipe.model["name"],
                "parameters": sum(parameter.numel() for parameter in run.state.model.parameters()),
                "multiply_adds": count_multiply_adds(config),
                "image_size": config.image_size,
            },
            "data": {
                "train": {"split": train.name, "images": len(train)},
                "validation": {"split": validation.name, "images": len(validation)},
                "classes": len(run.dataset.classes),
                "left_out": {reason: found.count for reason, found in run.dataset.left_out.reasons.items()},
            },
            "steps": {"done": run.state.step, "all": sampler.total, "epochs": run.recipe.epochs},
            "device": str(run.distributed.device),
            "step": None if run.recipe.method == "probe" or run.state.step >= sampler.total else _measure(run),
        }


def _measure(run: Training) -> dict[str, Any]:
    """Memory and time of a step and of validating, and the time to the end."""
    device, sampler, state = run.distributed.device, run.context.sampler, run.state
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batches = run.training_batches()
    state.model.train()
    steps, images = [], 0
    for _ in range(min(STEPS + 1, sampler.total - state.step)):
        batch, started = next(batches), time.perf_counter()
        step = take_step(state, batch, run.context, learning_rate(state.step, sampler.total, run.recipe.peak_rate))
        _wait(device)
        steps.append(time.perf_counter() - started)
        state.step, images = step.step, step.images
    seconds = statistics.median(steps[1:] or steps)
    validating = _validation_seconds(run)
    left = sampler.total - state.step + len(steps)
    epochs = run.recipe.epochs - state.epoch
    return {
        "images": images,
        "memory": _memory(device),
        "seconds": round(seconds, 4),
        "validation_seconds": round(validating, 2),
        "seconds_to_the_end": round(left * seconds + epochs * validating, 1),
    }


@torch.inference_mode()
def _validation_seconds(run: Training) -> float:
    """The time of validating, from its first batch."""
    batches = run.validation_batches()
    first = next(iter(batches))
    model = run.state.average.module.eval()
    device = run.distributed.device
    started = time.perf_counter()
    if len(first.labels):
        model(run.context.normalize(first.pixels.to(device)))
        _wait(device)
    return (time.perf_counter() - started) * len(batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def report_lines(found: dict[str, Any]) -> Iterator[str]:
    """The report of `describe_training` for a person, line by line."""
    model, data, steps, step = (found[name] for name in ("model", "data", "steps", "step"))
    yield (
        f"model       {model['name']}, {model['parameters'] / 1e6:.2f} M parameters, "
        f"{model['multiply_adds'] / 1e9:.3f} G multiply-adds for an image of {model['image_size']} px"
    )
    train, validation = data["train"], data["validation"]
    yield (
        f"data        {train['images']:,} images in {train['split']}, {validation['images']:,} in "
        f"{validation['split']}, {data['classes']} classes"
    )
    if data["left_out"]:
        yield "left out    " + ", ".join(f"{count:,} ({reason})" for reason, count in data["left_out"].items())
    yield f"steps       {steps['done']:,} of {steps['all']:,} done, {steps['epochs']} epochs, on {found['device']}"
    if step is not None:
        memory = "" if step["memory"] is None else f", memory {step['memory'] / 2**30:.2f} GiB"
        yield f"a step      {step['images']} images, {step['seconds']:.3g} s{memory}"
        yield (
            f"to the end  about {duration(step['seconds_to_the_end'])}, with {step['validation_seconds']:.3g} s for "
            "each validation, if images load as fast"
        )
