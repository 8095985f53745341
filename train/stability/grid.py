"""The stability grid: models at many learning rates without warm-up. How far off can the learning rate be?

LipsFormer (arXiv 2304.09856) claims to train without warm-up and without tuning the learning rate. Here it and what it
is compared with, the columns, train on the same batches with the same random numbers at each rate. Each training runs
in a separate process (`runner.py`). Finished trainings are not repeated, and a killed one is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import lipsformer
from lipsformer.datasets import ImageDataset, check_output, open_dataset
from lipsformer.model.factory import build_model
from lipsformer.model.variants import make_config
from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores, torch_device
from lipsformer.train.recipe import Recipe, load_recipe
from lipsformer.train.state import fingerprint

from .columns import DEFAULT_COLUMNS, Column, read_columns
from .plot import plot_stability
from .report import Chance, describe, render_report, summarize
from .runner import Trial, run_all, threads_each

__all__ = ["measure_stability", "parse_rates"]

GRID, RUNS = "grid.json", "runs"
REPORT, TABLE, PLOT = "stability.json", "stability.md", "stability.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The trainings: those of each column, at each learning rate, with each seed.

    `dataset` is the fingerprint of the dataset.
    """

    columns: tuple[Column, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    dataset: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "columns": [column.label for column in self.columns],
            "recipes": [column.recipe.to_dict() for column in self.columns],
            "learning_rates": list(self.learning_rates),
            "seeds": list(self.seeds),
            "dataset": self.dataset,
        }

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """The differences from the grid that `before` describes, one line for each value."""
        labels = [column.label for column in self.columns]
        if before["columns"] != labels:
            return [f"columns were {', '.join(before['columns'])}, are {', '.join(labels)}"]
        lines: list[str] = []
        for old, (_, new) in zip(before["recipes"], self.columns, strict=True):
            for line in Recipe.from_dict({**old, "seed": new.seed, "learning_rate": new.learning_rate}).differences(
                new
            ):
                lines += [line] if line not in lines else []  # a setting of all columns is listed once
        for name, new_values in (("learning rates", self.learning_rates), ("seeds", self.seeds)):
            old_values = before[name.replace(" ", "_")]
            if old_values != list(new_values):
                lines.append(f"{name} were {_listed(old_values)}, are {_listed(new_values)}")
        return lines + (["the dataset differs"] if before["dataset"] != self.dataset else [])


def measure_stability(
    data: Path,
    *,
    output: Path,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    learning_rates: str,
    seeds: int = 1,
    recipe: str = "default",
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Trains each column at each learning rate and returns the report in stability.json.

    `output` receives stability.json, stability.md, stability.png, and a folder for each training below runs/. A
    training that diverges is a result, not an error. An interrupted grid resumes when called again. Trainings run in
    separate processes, which import the calling script again: call this below `if __name__ == "__main__":`.

    Args:
        data: class folders, or train/ and val/ or test/ with class folders.
        output: folder to write. It must be empty, absent, or hold the same grid.
        columns: what to compare, each as "[LABEL:] VARIANT [KEY=VALUE ...]"; see `read_columns`.
        learning_rates: numbers separated by commas.
        seeds: number of trainings of each column at each rate, with the recipe's seed and those that follow.
        recipe: a packaged recipe or the path of a TOML file.
        epochs: number of epochs; by default the recipe's.
        overrides: "key=value" changes to the recipe, for all columns.
        jobs: number of parallel trainings, each with its share of the cores. By default one per core, or one on a GPU.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if an argument, the recipe, the dataset or one of its images cannot be used, or `output` holds
            a different grid.
        LipsFormerError: if the process of a training fails.
    """
    check_output(output, data)
    target = torch_device(device)
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise InputError(f"--{'seeds' if seeds < 1 else 'jobs'}: at least 1 is needed")
    rates = parse_rates(learning_rates)
    compared = read_columns(columns, recipe, epochs, overrides, rates[0])
    dataset = open_dataset(data)
    dataset.left_out.report(data)
    first = compared[0].recipe.seed
    grid = Grid(
        columns=compared,
        learning_rates=rates,
        seeds=tuple(range(first, first + seeds)),
        dataset=fingerprint(dataset),
    )
    _open_grid(output, grid)
    trials = _trials(grid, output / RUNS)
    jobs = min(jobs or (cores() if target.type == "cpu" else 1), len(trials))
    run_all(trials, data, target.type, jobs)
    return _conclude(output, grid, trials, dataset, _machine(target, jobs))


def parse_rates(text: str) -> tuple[float, ...]:
    """Parses learning rates such as "1e-3,1e-2" and sorts them.

    Raises:
        InputError: if one is not a finite number above 0, or occurs twice.
    """
    rates = []
    for part in text.split(","):
        try:
            rates.append(float(part))
        except ValueError:
            raise InputError(f"--learning-rates {text}: '{part.strip()}' is not a number; write 1e-3,1e-2") from None
        if not 0 < rates[-1] < float("inf"):
            raise InputError(f"--learning-rates {text}: {part.strip()} is not above 0 and finite")
    if len(set(rates)) < len(rates):
        raise InputError(f"--learning-rates {text}: a rate occurs twice; remove one")
    return tuple(sorted(rates))


def _open_grid(output: Path, grid: Grid) -> None:
    """Writes grid.json to a new `output`, or checks that it is the same grid in an earlier one."""
    path = output / GRID
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"{output}: exists already and holds no {GRID}; choose another --output")
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(grid.to_dict(), indent=2) + "\n", encoding="utf-8")
        return
    try:
        differences = grid.differences(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); choose another --output") from None
    if differences:
        raise InputError(
            f"{path}: belongs to a different grid ({'; '.join(differences)}); use the same settings or another --output"
        )


def _trials(grid: Grid, root: Path) -> list[Trial]:
    trials = []
    for seed in grid.seeds:
        for rate in grid.learning_rates:
            for label, recipe in grid.columns:
                changed = load_recipe(recipe, {"learning_rate": rate, "seed": seed})
                trials.append(Trial(column=label, recipe=changed, folder=root / f"{label}-rate{rate}-seed{seed}"))
    return trials


def _conclude(
    output: Path, grid: Grid, trials: Sequence[Trial], dataset: ImageDataset, machine: dict[str, Any]
) -> dict[str, Any]:
    """Writes and returns the report."""
    chance = Chance.of(dataset.validation.labels.tolist(), len(dataset.classes))
    results = [(trial, trial.result()) for trial in trials]
    runs = [describe(trial.column, trial.recipe, result, chance) for trial, result in results if result is not None]
    report = {
        "command": shlex.join(["lipsformer", *sys.argv[1:]]),
        "machine": machine,
        "dataset": {
            "name": dataset.root.resolve().name,
            "classes": len(dataset.classes),
            "training_images": len(dataset.train),
            "validation_images": len(dataset.validation),
            "validation_split": dataset.validation.name,
        },
        "chance": dataclasses.asdict(chance),
        "parameters": {column.label: _parameters(column.recipe, len(dataset.classes)) for column in grid.columns},
        "grid": grid.to_dict(),
        "summary": {label: summarize([run for run in runs if run["column"] == label]) for label, _ in grid.columns},
        "runs": runs,
    }
    for name, text in ((REPORT, json.dumps(report, indent=1) + "\n"), (TABLE, render_report(report))):
        with atomic_write(output / name) as draft:
            draft.write_text(text, encoding="utf-8")
    plot_stability(output / PLOT, report)
    console.say(f"{output / TABLE}, {PLOT} and {REPORT} are ready", always=True)
    return report


def _parameters(recipe: Recipe, classes: int) -> int:
    with torch.device("meta"):
        model = build_model(make_config(num_classes=classes, **recipe.model))
    return sum(parameter.numel() for parameter in model.parameters())


def _machine(device: torch.device, jobs: int) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": cores(),
        "jobs": jobs,
        "threads_per_job": threads_each(jobs),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lipsformer": lipsformer.__version__,
    }


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
