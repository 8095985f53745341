"""The interface between a training and everything that follows it: files, displays, experiment trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from lipsformer.train.metrics import EpochMetrics, StepMetrics
from lipsformer.train.recipe import Recipe
from lipsformer.train.run_folder import RunFolder

__all__ = ["Listener", "RunInfo"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run as its listeners see it when it begins or resumes.

    `title` names the model and the dataset. `run_id` is the same whenever the run resumes. `step` and `history` are the
    steps and epochs done before. `say` gives a line to the person who watches.
    """

    title: str
    run_id: str
    folder: RunFolder
    recipe: Recipe
    steps_per_epoch: int
    step: int
    history: Sequence[EpochMetrics]
    say: Callable[[str], None]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.path.resolve().name

    @property
    def parameters(self) -> Mapping[str, str]:
        """The whole recipe, by dotted key, and what is trained on what."""
        return {"title": self.title, **{name: str(value) for name, value in self.recipe.to_flat_dict().items()}}


class Listener:
    """Follows a training in its main process. Override the methods you need; the others do nothing.

    An epoch reaches the listeners before its state is saved. If the process is killed between the two, the resumed run
    repeats the end of the epoch and reports it again.
    """

    def on_begin(self, run: RunInfo) -> None:
        """Called once, before the first step."""

    def on_step(self, step: StepMetrics) -> None:
        """Called after each training step."""

    def on_validation(self, done: int, batches: int) -> None:
        """Called for each validation batch; `done` counts from 1."""

    def on_epoch(self, epoch: EpochMetrics) -> None:
        """Called after each epoch and its validation."""

    def on_message(self, text: str) -> None:
        """Called with a line for the person who watches."""

    def on_end(self) -> None:
        """Called once after the last step, however the training ends."""

    def on_report(self, *, finished: bool) -> None:
        """Called once at the very end, when the run's files are written. A training may be `finished` or not."""
