"""The run folder: its files, and how it is opened, written and resumed. All writes are atomic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lipsformer.datasets import DatasetOptions
from lipsformer.evaluation.report.write import CLASSES, CONFUSION, MISTAKES
from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError

from .recipe import Recipe
from .state import TrainingState, read_state, save_state

__all__ = ["RunFolder"]

STATES = "state-*.safetensors"
KEPT_STATES = 2
RECIPE, METRICS, UNREADABLE = "recipe.toml", "metrics.jsonl", "unreadable.txt"
LAST, BEST = "last.safetensors", "best.safetensors"
CURVES = "curves.png"
EVENTS = "tensorboard"
RATE_PLOT, RATE_REPORT = "learning_rate.png", "learning_rate.json"
NAMES = (STATES, RECIPE, METRICS, UNREADABLE, LAST, BEST, CURVES, CONFUSION, MISTAKES, CLASSES, RATE_PLOT, RATE_REPORT)


class RunFolder:
    """The folder `path` of one training.

    Raises:
        InputError: if it is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.existed = path.is_dir()
        if path.exists() and not self.existed:
            raise InputError(f"{path}: not a folder; choose another --output")

    def open(self, *, resume: bool) -> tuple[Path, bytes] | None:
        """Finds the newest usable state and returns its path and content, or None if the training starts from scratch.

        A state that is truncated, damaged or foreign is reported, and the one before it is used.

        Raises:
            InputError: if the folder holds a run and `resume` is false, or none of its states can be used.
        """
        if not self.existed:
            return None
        for name in NAMES:
            for draft in self.path.glob(f".{name}.*.tmp"):  # of a killed run
                draft.unlink(missing_ok=True)
        if not any(entry.name not in (RATE_PLOT, RATE_REPORT) for entry in self.path.iterdir()):
            return None
        if not resume:
            raise InputError(f"{self.path}: exists already; use --resume auto to resume it, or choose another --output")
        if not self.states():
            raise InputError(f"{self.path}: holds other files and no training to resume; choose another --output")
        problem = ""
        for path in reversed(self.states()):
            if problem:
                console.say(f"{problem}; using the state before it", always=True)
            try:
                content = path.read_bytes()
                read_state(path, content)
            except (InputError, OSError) as error:
                problem = str(error)
            else:
                return path, content
        raise InputError(f"{problem}; no usable state is left, train again into another --output")

    def states(self) -> list[Path]:
        """The state files, oldest first."""
        return sorted(self.path.glob(STATES))

    def save_state(self, state: TrainingState, recipe: Recipe, dataset: str, options: DatasetOptions) -> None:
        """Saves a state, named by its step, and keeps the newest two."""
        with self.writing():
            save_state(self.path / STATES.replace("*", f"{state.step:09d}"), state, recipe, dataset, options)
            for old in self.states()[:-KEPT_STATES]:
                old.unlink(missing_ok=True)

    def save_recipe(self, recipe: Recipe) -> None:
        """Writes recipe.toml, which can be passed to another training."""
        self.write(RECIPE, recipe.to_toml())

    def save_unreadable(self, messages: Iterable[str]) -> None:
        """Writes unreadable.txt, one line for each image that cannot be read; no file if there are none."""
        if lines := sorted(messages):
            self.write(UNREADABLE, "".join(line + "\n" for line in lines))

    def unreadable(self) -> set[str]:
        """The lines that `save_unreadable` wrote."""
        with contextlib.suppress(OSError):
            return set((self.path / UNREADABLE).read_text(encoding="utf-8").splitlines())
        return set()

    def discard(self) -> None:
        """Removes the files of a training that diverged before its first epoch ended."""
        for path in (*self.states(), self.path / RECIPE, self.path / UNREADABLE):
            path.unlink(missing_ok=True)
        if not self.existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an error of writing into one line."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error}); fix that and run the command again to resume"
            ) from None

    def write(self, name: str, text: str) -> None:
        """Writes a text file.

        Raises:
            InputError: if it cannot be written.
        """
        with self.writing(), atomic_write(self.path / name) as draft:
            draft.write_text(text, encoding="utf-8", errors="surrogateescape")
