"""Distillation on against off at equal processor time, over several seeds.

    python benchmarks/accuracy/distillation.py --data cifar10 --recipe cifar10 --teacher TEACHER.safetensors \
        --epochs 30 > benchmarks/accuracy/distillation.md

A step with a teacher takes longer. So that both kinds get the same time, trainings of one epoch measure the processor
time of both first, which other load on the machine hardly changes, and the training without a teacher gets as many more
epochs; its learning rate falls over all of them. Both kinds then train in turn. The table has the minutes of processor
time, over all threads and workers.

--holdout takes the training split alone and validates on a quarter of it. Choose settings with it, so that the test
photos decide nothing, and with a teacher that has not seen that quarter either (--fold 1/4 trains one).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lipsformer.datasets import DatasetOptions, resolve_dataset
from lipsformer.system.hardware import cpu_name
from lipsformer.system.markdown import markdown_table
from lipsformer.train import load_recipe, run_training

ON, OFF = "with the teacher", "without a teacher"
HEADING = """# Distillation

Top-1 after the last epoch of the recipe `{recipe}` on {data}, at equal processor time, with {seeds} seeds.{holdout}

    {command}

{machine}
"""


def main() -> None:
    """Measures, trains, and prints the table."""
    arguments = parse()
    data, options = resolve_dataset(arguments.data), None
    if arguments.holdout:
        data, options = data / "train", DatasetOptions(fold="1/4")

    def train(kind: str, name: str, epochs: int, seed: int) -> tuple[float, float]:
        """The last top-1 and the seconds of processor time of a training."""
        recipe, settings, teacher = arguments.recipe, [*arguments.overrides, f"seed={seed}"], arguments.teacher
        if kind == ON:
            settings += arguments.distillation
        else:
            recipe, teacher = str(plain), None
        folder = root / f"{'on' if kind == ON else 'off'}-{name}"
        before = processor_seconds()
        run_training(
            data,
            output=folder,
            recipe=recipe,
            epochs=epochs,
            overrides=settings,
            teacher=teacher,
            device=arguments.device,
            options=options,
        )
        *_, last = (folder / "metrics.jsonl").read_text().splitlines()
        return json.loads(last)["val_top1"], processor_seconds() - before

    with tempfile.TemporaryDirectory() as scratch:
        root, plain = arguments.output or Path(scratch), Path(scratch) / "without-teacher.toml"
        plain.write_text(dataclasses.replace(load_recipe(arguments.recipe), distillation=None).to_toml())
        epochs = equal_times(train, arguments.epochs, arguments.trials)
        runs: dict[str, list[tuple[float, float]]] = {ON: [], OFF: []}
        for seed in range(arguments.seeds):
            for kind, done in runs.items():
                done.append(train(kind, f"seed-{seed}", epochs[kind], seed))
    print(HEADING.format(**describe(arguments)))
    print(markdown_table(("training", "epochs", "minutes", "top-1", "of each seed"), rows(runs, epochs), "lrrrl"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="checkpoint, bundle, .onnx file or timm:NAME; default: the recipe's")
    parser.add_argument("--data", default="cifar10", help="dataset with train/ and val/ or test/ (cifar10)")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--epochs", type=int, default=30, help="of the training with the teacher (30)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (3)")
    parser.add_argument("--trials", type=int, default=2, help="epochs of each kind to measure; 0: as many epochs (2)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe change of both kinds")
    parser.add_argument(
        "--set-distillation",
        dest="distillation",
        action="append",
        default=[],
        help="recipe change with the teacher, such as distillation.weight=0.5",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--holdout", action="store_true", help="validate on a quarter of the training split")
    parser.add_argument("--output", type=Path, help="keep the run folders here, to resume and to look at the curves")
    return parser.parse_args()


def equal_times(train: Any, epochs: int, trials: int) -> dict[str, int]:
    """The number of epochs of each kind that take the same time."""
    seconds: dict[str, list[float]] = {ON: [], OFF: []}
    for number in range(trials):
        for kind, found in seconds.items():
            found.append(train(kind, f"trial-{number}", 1, 0)[1])
    ratio = statistics.median(seconds[ON]) / statistics.median(seconds[OFF]) if trials else 1.0
    return {ON: epochs, OFF: max(1, round(epochs * ratio))}


def processor_seconds() -> float:
    """What this process has used so far, and the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def rows(runs: dict[str, list[tuple[float, float]]], epochs: dict[str, int]) -> list[list[str]]:
    """The table: means over the seeds, with the standard deviation."""
    lines = []
    for kind, done in runs.items():
        found, seconds = zip(*done, strict=True)
        minutes = statistics.mean(seconds) / 60
        spread = f" ± {statistics.stdev(found):.1%}" if len(found) > 1 else ""
        each = ", ".join(f"{top1:.1%}" for top1 in found)
        lines.append([kind, str(epochs[kind]), f"{minutes:.1f}", f"{statistics.mean(found):.1%}{spread}", each])
    return lines


def describe(arguments: argparse.Namespace) -> dict[str, object]:
    """What the heading says."""
    return {
        "recipe": arguments.recipe,
        "data": arguments.data,
        "seeds": arguments.seeds,
        "holdout": " Validated on a quarter of the training split." if arguments.holdout else "",
        "command": shlex.join(["python", "benchmarks/accuracy/distillation.py", *sys.argv[1:]]),
        "machine": f"torch {torch.__version__}, {torch.get_num_threads()} threads; {cpu_name()}.",
    }


if __name__ == "__main__":
    main()
