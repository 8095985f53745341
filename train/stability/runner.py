"""Runs many trainings in parallel, each in a separate process (`trial.py`). Finished ones are not repeated.

Processes are forked from one that has imported PyTorch already, so that they start at once. `ProcessPoolExecutor` could
not start them: its BrokenProcessPool neither names the trial whose process died nor spares the others, and up to Python
3.14 a pool that takes a fresh process for each task, which frees the memory of a finished trial, can deadlock
(python/cpython#115634).
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lipsformer.model.variants import make_config
from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.hardware import cores
from lipsformer.train.listeners.progress import duration
from lipsformer.train.recipe import Recipe, load_recipe

from .trial import LOG, RECIPE, RESULT, run_process

__all__ = ["Trial", "run_all", "threads_each"]

POLL_SECONDS = 0.1
FORKSERVER = multiprocessing.get_context("forkserver")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of the grid: the label of its column, its recipe, and the folder that it writes to."""

    column: str
    recipe: Recipe
    folder: Path

    def __str__(self) -> str:
        return f"{self.column} at learning rate {self.recipe.learning_rate:g}, seed {self.recipe.seed}"

    def result(self) -> dict[str, Any] | None:
        """The result that `run_trial` wrote, or None if the training has not ended."""
        path = self.folder / RESULT
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError:
            raise InputError(f"{path}: damaged; remove its folder to train again") from None


def threads_each(jobs: int) -> int:
    """Threads for each of `jobs` parallel trainings: an equal share of the cores, at least one."""
    return max(1, cores() // jobs)


def run_all(trials: Sequence[Trial], data: Path, device: str, jobs: int) -> None:
    """Runs the unfinished ones of `trials` on `data`, `jobs` in parallel, each with its share of the cores.

    However this ends, no process is left running.

    Raises:
        InputError: if a training could not use its input.
        LipsFormerError: if the process of a training failed. A training that diverges is not a failure.
    """
    waiting = [trial for trial in trials if trial.result() is None]
    threads, before, begun = threads_each(jobs), len(trials) - len(waiting), time.monotonic()
    console.say(
        f"{len(trials)} trainings{f', {before} already finished' if before else ''}; {jobs} in parallel, each on "
        f"{device} with {threads} thread{'s' if threads > 1 else ''}"
    )
    FORKSERVER.set_forkserver_preload([run_process.__module__])
    running: dict[BaseProcess, tuple[Trial, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running[_start(trial, data, device, threads)] = trial, time.monotonic()
                console.say(f"started: {trial}")
            for process in [process for process in running if not process.is_alive()]:
                trial, since = running.pop(process)
                end, now, left = _end(trial, process.exitcode), time.monotonic(), len(waiting) + len(running)
                done = len(trials) - left
                rest = f", about {duration((now - begun) / (done - before) * left)} left" if left else ""
                console.say(f"{done} of {len(trials)}{rest}: {trial}: {end}, {duration(now - since)}")
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.kill()  # safe at any moment: a training writes atomically
            process.join()


def _start(trial: Trial, data: Path, device: str, threads: int) -> BaseProcess:
    with atomic_write(trial.folder / RECIPE) as draft:
        draft.write_text(_in_full(trial.recipe, threads).to_toml(), encoding="utf-8")
    process = FORKSERVER.Process(target=run_process, args=(data, trial.folder, device, threads))
    process.start()
    return process


def _in_full(recipe: Recipe, threads: int) -> Recipe:
    """`recipe` with every setting of its model written out, because a file takes omitted ones from default.toml.

    Loader processes share the `threads`, too. Their number does not change the result.
    """
    config = make_config(**recipe.model).to_dict()
    model = {f"model.{name}": value for name, value in config.items() if name not in ("architecture", "num_classes")}
    return load_recipe(recipe, {**model, "workers": min(recipe.workers, threads - 1)})


def _end(trial: Trial, status: int | None) -> str:
    """Describes how a training ended.

    Raises:
        InputError: if it could not use its input.
        LipsFormerError: if its process failed.
    """
    result = trial.result()
    if status == 0 and result is not None:
        if result["diverged_at"] is not None:
            return f"diverged at step {result['diverged_at']}"
        return f"top-1 {result['epochs'][-1]['val_top1']:.1%}"
    log = trial.folder / LOG
    last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    if status == InputError.exit_code:
        raise InputError(last)
    raise LipsFormerError(
        f"{trial}: its process ended with status {status} ({last}); see {log}, then run the command again"
    )
