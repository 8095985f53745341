"""A whole training run: dataset and recipe in, a run directory out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lipsformer.datasets import ImageFolder, open_dataset
from lipsformer.evaluation.report.write import CLASSES
from lipsformer.system import console
from lipsformer.system.errors import InputError
from lipsformer.train.listeners import make_listeners

from .distributed import DistributedContext, init_distributed
from .loop import DivergedError
from .recipe import Recipe, load_recipe
from .run_folder import BEST, LAST, RunFolder
from .signals import stop_on_signals
from .state import SavedState, fingerprint, read_state
from .training import Training

__all__ = ["open_run", "run_training"]


def run_training(
    data: Path,
    *,
    output: Path,
    model: str | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = True,
    device: str = "auto",
    tensorboard: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains a classifier on the dataset `data` and returns the path of its best checkpoint.

    `output` receives best.safetensors and last.safetensors (averaged weights), state-*.safetensors (to resume),
    metrics.jsonl (a line per epoch), recipe.toml, unreadable.txt where images cannot be read, and at the end, also an
    early one, curves.png, confusion.png, mistakes.png and classes.md.

    Started by `torchrun`, the processes share each batch; the first one writes.

    Args:
        data: class folders or shards, or train/ and val/ or test/ with them.
        output: the run directory; empty, absent, or that of the same training, which then goes on from its last state
            to the very weights that an uninterrupted run gives on the same machine.
        model: a variant, or a checkpoint to start from; the recipe's by default.
        recipe: a packaged recipe or the path of a TOML file; "default", or that of the run which is resumed.
        epochs: instead of the recipe's.
        overrides: "key=value" changes to the recipe, such as "model.window_size=6".
        resume: whether a training in `output` may be taken up.
        device: "auto", "cpu" or "cuda".
        tensorboard: also write events for TensorBoard into `output`/tensorboard.
        quiet: report errors and the final line only.

    Raises:
        InputError: if an argument, the recipe or the dataset cannot be used, or `output` holds another training.
        LipsFormerError: if the training diverges, or was stopped by a signal.
    """
    choices = {"model": model, "recipe": recipe, "epochs": epochs, "overrides": overrides}
    with stop_on_signals() as stop, open_run(data, output=output, resume=resume, device=device, **choices) as run:
        first, best, last = run.distributed.is_main, output / BEST, output / LAST
        if run.finished and (output / CLASSES).is_file():
            if first:
                console.say(f"{output}: finished already, after {run.state.epoch} epochs")
            return best
        try:
            run.train(stop, make_listeners(tensorboard=tensorboard, quiet=quiet))
        except DivergedError:
            if first and not run.state.history:
                run.folder.discard()
            raise
        finally:
            if first:
                run.report()
        if first:
            console.say(f"{best} and {last.name} are ready, reports beside them; next: lipsformer export {last}")
        return best


@contextlib.contextmanager
def open_run(data: Path, *, output: Path, resume: bool, device: str, **choices: Any) -> Iterator[Training]:
    """The training that `run_training`'s arguments describe, in the state that `output` holds, or in its first."""
    with init_distributed(device) as distributed:
        folder = RunFolder(output)
        saved = _open(folder, distributed, resume)
        chosen = _choose_recipe(saved, **choices)
        dataset = open_dataset(data)
        digest = fingerprint(dataset)
        distributed.check_same(digest, f"the dataset {data}")
        if saved is not None:
            _check_same(saved, chosen, dataset, digest)
        run = Training(chosen, dataset, digest, folder, distributed)
        if saved is not None:
            run.state.load(saved, run.labels)
        yield run


def _open(folder: RunFolder, distributed: DistributedContext, resume: bool) -> SavedState | None:
    """The state to go on from, as the first process found it; nothing if the training is to start."""
    found = folder.open(resume=resume) if distributed.is_main else None
    content = distributed.broadcast(None if found is None else found[1])
    if content is None:
        return None
    return read_state(folder.path if found is None else found[0], content)


def _choose_recipe(
    saved: SavedState | None,
    *,
    model: str | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    chosen = load_recipe(recipe or (saved.recipe if saved else "default"))
    if model is not None:
        chosen = load_recipe(chosen, {"model.name": model})
    chosen = load_recipe(chosen, overrides)
    return chosen if epochs is None else load_recipe(chosen, {"epochs": epochs})


def _check_same(saved: SavedState, recipe: Recipe, dataset: ImageFolder, digest: str) -> None:
    differences = saved.recipe.differences(recipe)
    if differences:
        raise InputError(
            f"{saved.path}: belongs to another recipe ({'; '.join(differences)}); give the same one, "
            "or train into another --output"
        )
    if saved.dataset != digest:
        raise InputError(
            f"{saved.path}: belongs to another dataset than {dataset.root} (classes or file names differ); "
            "give the same one, or train into another --output"
        )
