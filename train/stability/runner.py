"""Many trainings at once, each in a process of its own (`trial.py`); those that have ended are not repeated."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipsformer.model.variants import make_config
from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.hardware import cores
from lipsformer.train.recipe import Recipe, load_recipe

from .trial import RECIPE, RESULT

__all__ = ["Trial", "run_all", "threads_each"]

LOG = "log.txt"
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of the grid: its recipe, and the folder that it writes to."""

    recipe: Recipe
    folder: Path

    def __str__(self) -> str:
        return f"{self.recipe.model['name']} at learning rate {self.recipe.learning_rate:g}, seed {self.recipe.seed}"

    def result(self) -> dict[str, Any] | None:
        """What `run_trial` wrote, or nothing if the training has not ended."""
        path = self.folder / RESULT
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError:
            raise InputError(f"{path}: damaged; remove its folder to train again") from None


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` trainings at once: an equal share of the cores, one at least."""
    return max(1, cores() // jobs)


def run_all(trials: Sequence[Trial], data: Path, device: str, jobs: int) -> None:
    """Runs those of `trials` that have not ended yet on `data`, `jobs` at once, each with its share of the cores.

    However it ends, no process is left behind.

    Raises:
        InputError: if a training could not use its input.
        LipsFormerError: if the process of one failed. That a training diverged is no failure.
    """
    waiting = [trial for trial in trials if trial.result() is None]
    done, threads = len(trials) - len(waiting), threads_each(jobs)
    console.say(
        f"{len(trials)} trainings{f', {done} done before' if done else ''}; {jobs} at once, each on {device} with "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
    progress = Progress(total=len(trials), done=done, started=time.monotonic())
    running: dict[subprocess.Popen[bytes], tuple[Trial, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running[_start(trial, data, device, threads)] = trial, time.monotonic()
                console.say(f"started: {trial}")
            for process in [process for process in running if process.poll() is not None]:
                trial, since = running.pop(process)
                process.communicate()  # closes its standard input
                end = _end(trial, process.returncode)
                console.say(f"{progress.advance()}: {trial}: {end}, {_duration(time.monotonic() - since)}")
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.kill()  # safe at any moment: what a training writes appears whole or not at all
            process.communicate()


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How many of the trainings are done, and how long the rest will take."""

    total: int
    done: int
    started: float
    ended: int = 0  # since `started`

    def advance(self) -> str:
        """Counts one more, and says how far it has come."""
        self.ended += 1
        left = self.total - self.done - self.ended
        seconds = (time.monotonic() - self.started) / self.ended * left
        return f"{self.total - left} of {self.total}, {f'about {_duration(seconds)} left' if left else 'the last'}"


def _start(trial: Trial, data: Path, device: str, threads: int) -> subprocess.Popen[bytes]:
    with atomic_write(trial.folder / RECIPE) as draft:
        draft.write_text(_in_full(trial.recipe, threads).to_toml(), encoding="utf-8")
    with (trial.folder / LOG).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", "lipsformer.train.stability.trial", str(data), str(trial.folder), device],
            stdin=subprocess.PIPE,  # its end tells the process that this one has gone
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C comes to this process alone, which then stops the others
        )


def _in_full(recipe: Recipe, threads: int) -> Recipe:
    """`recipe` with every setting of its model, since a file takes from default.toml what it leaves out.

    Decoding has its share of the `threads` too; how many processes do it does not change the result.
    """
    config = make_config(**recipe.model).to_dict()
    model = {f"model.{name}": value for name, value in config.items() if name not in ("architecture", "num_classes")}
    return load_recipe(recipe, {**model, "workers": min(recipe.workers, threads - 1)})


def _end(trial: Trial, status: int) -> str:
    """How a training ended, in words.

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
    raise LipsFormerError(f"{trial}: its process ended with status {status} ({last}); see {log}, then call again")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
