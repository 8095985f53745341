"""A complete training run: from a dataset and a recipe to a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsformer.datasets import DatasetOptions, ImageDataset, check_output, open_dataset
from lipsformer.evaluation.report.write import CLASSES
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system import console
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.train.data.pixel_range import measure_pixel_range
from lipsformer.train.distillation.distiller import Distiller, TeacherError
from lipsformer.train.listeners import make_listeners
from lipsformer.train.probe import Probe, check_method
from lipsformer.train.trackers import make_tracking

from .distributed import DistributedContext, init_distributed
from .initial_weights import StartingPoint
from .loop import DivergedError
from .recipe import Recipe, load_recipe
from .run_folder import BEST, LAST, UNREADABLE, RunFolder
from .signals import stop_on_signals
from .state import SavedState, fingerprint, read_state
from .training import Training

if TYPE_CHECKING:
    from lipsformer.train.distillation.teacher import Teacher

__all__ = ["open_run", "run_training"]


def run_training(
    data: Path,
    *,
    output: Path,
    model: str | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    teacher: str | None = None,
    resume: bool = True,
    device: str = "auto",
    track: Sequence[str] = (),
    options: DatasetOptions | None = None,
) -> Path:
    """Trains a classifier on the dataset `data` and returns the path of its best checkpoint.

    Writes into `output`: best.safetensors and last.safetensors (averaged weights), state-*.safetensors (to resume),
    metrics.jsonl (a line per epoch), recipe.toml, unreadable.txt if images cannot be read, and at the end, even an
    early one, curves.png, confusion.png, mistakes.png and classes.md.

    Under `torchrun` the processes share each batch, and the main process writes.

    Args:
        data: class folders or shards, or train/ and val/ or test/ with them, or a table of labels.
        output: the run folder: empty, absent, or that of the same training. That one resumes from its last state, and
            ends with the same weights as an uninterrupted run on the same machine.
        model: a variant, or a checkpoint to start from; by default the recipe's.
        recipe: a packaged recipe or the path of a TOML file; by default "default", or that of the resumed run.
        epochs: number of epochs, instead of the recipe's.
        overrides: "key=value" changes to the recipe, such as "model.window_size=6".
        teacher: a trained model to distill from, instead of the recipe's; see `lipsformer.train.distillation`.
        resume: whether to resume a training in `output`.
        device: "auto", "cpu" or "cuda".
        track: trackers that record the run: "tensorboard", "mlflow", "wandb", "trackio".
        options: how to read and split the dataset; by default those of the resumed run.

    Raises:
        InputError: if an argument, the recipe or the dataset cannot be used, or `output` holds another training.
        LipsFormerError: if the training diverges or is stopped by a signal, or at its end if no image of a class could
            be read.
    """
    choices = {"model": model, "recipe": recipe, "epochs": epochs, "overrides": overrides, "options": options}
    choices["teacher"] = teacher
    tracking = make_tracking(track)
    with stop_on_signals() as stop, open_run(data, output=output, resume=resume, device=device, **choices) as run:
        first, best, last = run.distributed.is_main, output / BEST, output / LAST
        if run.finished and (output / CLASSES).is_file():
            if first:
                console.say(f"{output}: finished already, after {run.state.epoch} epochs", always=True)
            return best
        try:
            run.train(stop, make_listeners(files=run.recipe.method != "probe", tracking=tracking))
        except (DivergedError, TeacherError):
            if first and not run.state.history:
                run.folder.discard()
            raise
        finally:
            if first:
                run.report()
        if first and run.unreadable:
            console.say(f"{output / UNREADABLE}: {len(run.unreadable)} images could not be read", always=True)
        if first:
            console.say(f"{best} and {last.name} are ready, with reports; next: lipsformer export {last}", always=True)
        if first and (lost := run.lost()):
            raise LipsFormerError("; ".join(lost))
        return best


@contextlib.contextmanager
def open_run(data: Path, *, output: Path, resume: bool, device: str, **choices: Any) -> Iterator[Training]:
    """The training that `run_training`'s arguments describe, in the state saved in `output`, or at its start."""
    check_output(output, data)
    with init_distributed(device) as distributed:
        yield _open_training(data, RunFolder(output), distributed, resume=resume, **choices)


def _open_training(
    data: Path,
    folder: RunFolder,
    distributed: DistributedContext,
    *,
    resume: bool,
    recipe: str | None = None,
    options: DatasetOptions | None = None,
    **choices: Any,
) -> Training:
    saved = _read_newest_state(folder, distributed, resume)
    chosen = load_recipe(recipe or (saved.recipe if saved else "default"), **choices)
    check_method(chosen)
    start = StartingPoint.resolve(chosen.model)  # before any data is read: it may have to be refused
    chosen, teacher = _open_teacher(chosen, saved, folder, distributed)
    options = options or (saved.options if saved else DatasetOptions())
    with contextlib.nullcontext() if distributed.is_main else console.quiet():
        dataset = open_dataset(data, options)
    if distributed.is_main:
        dataset.left_out.report(data)
    digest = fingerprint(dataset)
    distributed.check_same(digest, f"the dataset {data}")
    if saved is not None:
        _check_same(saved, chosen, dataset, digest, folder)
    preprocessing, note = _preprocessing(saved, chosen, start, dataset, distributed)
    distiller = None
    if teacher is not None and chosen.distillation is not None:
        distiller = Distiller(chosen.distillation, teacher, dataset.classes, preprocessing, distributed.device)
    kind = Probe if chosen.method == "probe" else Training
    run = kind(
        chosen, start, preprocessing, dataset, digest, folder, distributed, options, note=note, distiller=distiller
    )
    if saved is not None:
        run.state.load(saved, run.labels)
    return run


def _open_teacher(
    recipe: Recipe, saved: SavedState | None, folder: RunFolder, distributed: DistributedContext
) -> tuple[Recipe, Teacher | None]:
    """The recipe with the hashes of its teacher, and the teacher, if it has one. A resumed training needs the same."""
    settings, before = recipe.distillation, None if saved is None else saved.recipe.distillation
    if settings is None:
        return recipe, None
    path = Path(settings.teacher)
    if path.exists() and path.resolve().is_relative_to(folder.path.resolve()):
        raise InputError(f"--teacher {settings.teacher}: lies in the --output folder {folder.path}; choose another one")
    if before is not None and before.teacher == settings.teacher and settings.sha256 is None:
        settings = dataclasses.replace(settings, sha256=before.sha256)
    from lipsformer.train.distillation.teacher import open_teacher

    teacher = open_teacher(settings, distributed.device, recipe.dtype)
    distributed.check_same(f"{teacher.sha256} {teacher.classes_sha256}", f"the teacher {settings.teacher}")
    table = settings.preprocessing and dataclasses.replace(
        settings.preprocessing, classes_sha256=teacher.classes_sha256
    )
    settings = dataclasses.replace(settings, sha256=teacher.sha256, preprocessing=table)
    return dataclasses.replace(recipe, distillation=settings), teacher


def _preprocessing(
    saved: SavedState | None,
    recipe: Recipe,
    start: StartingPoint,
    dataset: ImageDataset,
    distributed: DistributedContext,
) -> tuple[Preprocessing, str]:
    """The preprocessing of a training, and a note on its pixel range. A resumed training keeps what it started with."""
    preprocessing = dataclasses.replace(start.preprocessing, crop_pct=recipe.crop_pct)
    if saved is not None:
        if saved.preprocessing is not None:  # else it is older than the three settings below
            preprocessing = Preprocessing.from_dict(saved.preprocessing)
        return preprocessing, _note(preprocessing)
    note, pixel_range = "", recipe.pixel_range
    if pixel_range == "auto":
        # Only the main process measures: another could fail to read an image.
        found = measure_pixel_range(dataset.train) if distributed.is_main else None
        sent = distributed.broadcast(None if found is None else json.dumps(found.pixel_range).encode())
        pixel_range, note = json.loads(sent or b"null"), found.note if found else ""
    preprocessing = dataclasses.replace(
        preprocessing,
        pixel_range=pixel_range,
        color_management=recipe.color_management,
        jpeg_scale=recipe.jpeg_scale,
    )
    return preprocessing, note or _note(preprocessing)


def _note(preprocessing: Preprocessing) -> str:
    if not isinstance(preprocessing.pixel_range, tuple):
        return ""
    low, high = preprocessing.pixel_range
    return f"deep pixels are read as {low:g} (black) to {high:g} (white)"


def _read_newest_state(folder: RunFolder, distributed: DistributedContext, resume: bool) -> SavedState | None:
    """The state to resume from, as the main process found it, or None if the training is to start."""
    found = folder.open(resume=resume) if distributed.is_main else None
    content = distributed.broadcast(None if found is None else found[1])
    if content is None:
        return None
    return read_state(folder.path if found is None else found[0], content)


def _check_same(saved: SavedState, recipe: Recipe, dataset: ImageDataset, digest: str, folder: RunFolder) -> None:
    differences = saved.recipe.differences(recipe)
    if differences:
        last = folder.path / LAST
        further = f"; there, --model {last} starts from the weights of this run" if last.is_file() else ""
        raise InputError(
            f"{saved.path}: made with another recipe ({'; '.join(differences)}); use the same one, "
            f"or train into another --output{further}"
        )
    if saved.dataset != digest:
        raise InputError(
            f"{saved.path}: made with another dataset than {dataset.root} (classes or file names differ); "
            "use the same one, or train into another --output"
        )
