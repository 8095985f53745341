"""A run directory: what lies in it, and how it is opened, written and taken up again. Nothing appears half-written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

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
        """The newest state that can be used and its content, or nothing if the training is to start.

        One that is cut off, damaged or foreign is told, and the one before it taken.

        Raises:
            InputError: if the folder is in use and not to be resumed, or none of its states can be used.
        """
        if not self.existed:
            return None
        for name in NAMES:
            for draft in self.path.glob(f".{name}.*.tmp"):  # what a killed run was writing
                draft.unlink(missing_ok=True)
        if not any(entry.name not in (RATE_PLOT, RATE_REPORT) for entry in self.path.iterdir()):
            return None
        if not resume:
            raise InputError(f"{self.path}: exists already; use --resume auto to go on, or choose another --output")
        if not self.states():
            raise InputError(f"{self.path}: holds other files and no training to go on with; choose another --output")
        problem = ""
        for path in reversed(self.states()):
            if problem:
                console.say(f"{problem}; taking the state before it")
            try:
                content = path.read_bytes()
                read_state(path, content)
            except (InputError, OSError) as error:
                problem = str(error)
            else:
                return path, content
        raise InputError(f"{problem}; no state is left to go on from, train again into another --output")

    def states(self) -> list[Path]:
        """The state files, the oldest first."""
        return sorted(self.path.glob(STATES))

    def save_state(self, state: TrainingState, recipe: Recipe, dataset: str) -> None:
        """Saves a state under its step; the newest two are kept."""
        with self.writing():
            save_state(self.path / STATES.replace("*", f"{state.step:09d}"), state, recipe, dataset)
            for old in self.states()[:-KEPT_STATES]:
                old.unlink(missing_ok=True)

    def save_recipe(self, recipe: Recipe) -> None:
        """Writes the recipe as a file that can be given to another training."""
        self._write(RECIPE, recipe.to_toml())

    def save_history(self, state: TrainingState) -> None:
        """Writes a line for each finished epoch."""
        self._write(METRICS, "".join(json.dumps(record) + "\n" for record in state.history))

    def save_unreadable(self, messages: Iterable[str]) -> None:
        """Writes what is known of images that cannot be read, a line each; nothing if there are none."""
        if lines := sorted(messages):
            self._write(UNREADABLE, "".join(line + "\n" for line in lines))

    def unreadable(self) -> set[str]:
        """The lines that `save_unreadable` wrote."""
        with contextlib.suppress(OSError):
            return set((self.path / UNREADABLE).read_text(encoding="utf-8").splitlines())
        return set()

    def discard(self) -> None:
        """Removes what a training wrote that came to nothing."""
        for path in (*self.states(), self.path / RECIPE, self.path / UNREADABLE):
            path.unlink(missing_ok=True)
        if not self.existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Tells in one line what keeps the folder from being written."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error}); mend that and call again to go on") from None

    def _write(self, name: str, text: str) -> None:
        with self.writing(), atomic_write(self.path / name) as draft:
            draft.write_text(text, encoding="utf-8", errors="surrogateescape")
