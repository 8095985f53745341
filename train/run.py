"""A whole training run: dataset and recipe in, a run directory out."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lipsformer import console
from lipsformer.checkpoint import save_checkpoint
from lipsformer.datasets import ImageFolder, open_dataset
from lipsformer.errors import InputError
from lipsformer.machine import torch_device
from lipsformer.models import create_model
from lipsformer.normalise import Normalise
from lipsformer.outputs import publish_file
from lipsformer.preprocessing import Preprocessing

from .data import TrainingBatches, TrainingImages, ValidationImages, load_training, load_validation
from .draws import Purpose, seed_torch
from .loop import train_epoch, validate
from .optimisation import average_weights, build_optimizer
from .recipe import Recipe, load_recipe
from .report import plot_confusion, plot_curves
from .state import SavedState, TrainingState, fingerprint, read_state, save_state

__all__ = ["run_training"]

STATE, RECIPE, METRICS = "state.safetensors", "recipe.toml", "metrics.jsonl"
LAST, BEST = "last.safetensors", "best.safetensors"
CURVES, CONFUSION = "curves.png", "confusion.png"


def run_training(
    data: Path,
    *,
    output: Path,
    model: str | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Trains a classifier on the folder `data` and returns the path of its best checkpoint.

    `output` receives best.safetensors and last.safetensors (averaged weights), state.safetensors (to resume),
    metrics.jsonl (a line per epoch), curves.png, confusion.png and recipe.toml.

    Args:
        data: class folders, or train/ and val/ or test/ with class folders.
        output: the run directory; must be empty or absent unless `resume` is set.
        model: a variant; the recipe's by default.
        recipe: a packaged recipe or the path of a TOML file; "default", or that of the run which is resumed.
        epochs: instead of the recipe's.
        overrides: "key=value" changes to the recipe, such as "model.window_size=6".
        resume: go on from the last finished epoch, to the very weights that an uninterrupted run gives on the same
            machine; starts from the beginning if `output` is empty.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if an argument, the recipe, the dataset or one of its images cannot be used, or the run that is to
            be resumed is another one.
        LipsFormerError: if the training diverges.
    """
    target = torch_device(device)
    saved = _open_run(output, resume)
    chosen = _choose_recipe(recipe, saved, model, epochs, overrides)
    dataset = open_dataset(data)
    if saved is not None:
        _check_same(saved, chosen, dataset)
        if len(saved.history) >= chosen.epochs:
            console.say(f"{output}: finished already, after {chosen.epochs} epochs")
            return output / BEST
    run = Run(chosen, dataset, output, target)
    if saved is not None:
        run.state.restore(saved)
        console.say(f"{output}: resumed after epoch {run.state.epoch} of {chosen.epochs}")
    run.train()
    best, last = output / BEST, output / LAST
    console.say(
        f"{best} and {last.name} are ready, {CURVES} and {CONFUSION} beside them; next: lipsformer export {last}"
    )
    return best


class Run:
    """A training in progress: its state, what it learns from, and where it writes."""

    def __init__(self, recipe: Recipe, dataset: ImageFolder, output: Path, device: torch.device) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.output = output
        self.fingerprint = fingerprint(dataset)
        seed_torch(recipe.seed, Purpose.WEIGHTS)
        model = create_model(num_classes=len(dataset.classes), **recipe.model).to(device)
        self.config = model.config
        self.preprocessing = Preprocessing(image_size=self.config.image_size, crop_fraction=recipe.crop_fraction)
        self.normalise = Normalise(self.preprocessing).to(device)
        self.state = TrainingState(
            model=model,
            average=average_weights(model, recipe.ema_decay).eval(),
            optimizer=build_optimizer(model, recipe),
        )

    def train(self) -> None:
        """Trains until the recipe's last epoch. Reports are written even if it is interrupted."""
        state, recipe = self.state, self.recipe
        pin = self.normalise.offset.device.type == "cuda"
        order = TrainingBatches(len(self.dataset.train), recipe, start=state.step)
        batches = load_training(TrainingImages(self.dataset.train, recipe, self.preprocessing), order, pin=pin)
        validation = load_validation(ValidationImages(self.dataset.validation, self.preprocessing), recipe, pin=pin)
        self._introduce(order.steps_per_epoch)
        try:
            if state.step == 0:
                self._publish_start()
            while state.epoch < recipe.epochs:
                started = time.perf_counter()
                record = train_epoch(state, batches, self.normalise, recipe, order.steps_per_epoch)
                found = validate(state.average.module, validation, self.normalise, len(self.dataset.classes))
                record |= {"val_loss": found.loss if math.isfinite(found.loss) else None, "val_top1": found.top1}
                record["seconds"] = round(time.perf_counter() - started, 2)
                state.finish_epoch(record, found.confusion)
                self._publish()
                console.say(_summary(record, state.best, recipe.epochs))
        finally:
            self._conclude()

    def _introduce(self, steps: int) -> None:
        train, validation = self.dataset.train, self.dataset.validation
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        console.say(
            f"training {self.recipe.model['name']}, {parameters / 1e6:.1f} M parameters, {self.config.image_size} px, "
            f"on {len(train)} images of {len(self.dataset.classes)} classes, validating on {len(validation)} "
            f"({validation.name}): {self.recipe.epochs} epochs of {steps} steps on {self.normalise.offset.device.type}"
        )

    def _publish_start(self) -> None:
        """Makes the run resumable before its first epoch ends."""
        with _writing(self.output):
            save_state(self.output / STATE, self.state, self.recipe, self.fingerprint)
            with publish_file(self.output / RECIPE) as draft:
                draft.write_text(self.recipe.to_toml(), encoding="utf-8")

    def _publish(self) -> None:
        """Writes the last epoch. The state comes after the checkpoints: killed in between, the epoch is done again."""
        history = self.state.history
        with _writing(self.output):
            self._save_checkpoint(LAST)
            if self.state.best is history[-1]:
                self._save_checkpoint(BEST)
            save_state(self.output / STATE, self.state, self.recipe, self.fingerprint)
            with publish_file(self.output / METRICS) as draft:
                draft.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")

    def _save_checkpoint(self, name: str) -> None:
        record = self.state.history[-1]
        metrics = {
            "dataset": self.dataset.root.resolve().name,
            "split": self.dataset.validation.name,
            "images": len(self.dataset.validation),
            "epoch": record["epoch"],
            "epochs": self.recipe.epochs,
            "top1": record["val_top1"],
            "loss": record["val_loss"],
        }
        save_checkpoint(
            self.output / name,
            config=self.config,
            weights=self.state.average.module.state_dict(),
            classes=self.dataset.classes,
            preprocessing=self.preprocessing,
            metrics=metrics,
        )

    def _conclude(self) -> None:
        """Draws the reports; a run that ended before its first epoch did leaves nothing behind."""
        state = self.state
        if state.best is None or state.best_confusion is None:
            for name in (STATE, RECIPE):
                (self.output / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.output.rmdir()
            return
        title = f"{self.recipe.model['name']} on {self.dataset.root.resolve().name}"
        with _writing(self.output):
            plot_curves(self.output / CURVES, state.history, title)
            plot_confusion(self.output / CONFUSION, state.best_confusion, self.dataset.classes, title, state.best)


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{output}: cannot be written ({error}); mend that, then --resume") from None


def _open_run(output: Path, resume: bool) -> SavedState | None:
    """The state to go on from, or nothing if the run is to start in an empty folder.

    Raises:
        InputError: if `output` is not a folder, is in use and not to be resumed, or holds no state.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: not a folder; choose another --output")
    if not output.is_dir():
        return None
    for name in (STATE, RECIPE, METRICS, LAST, BEST, CURVES, CONFUSION):
        for draft in output.glob(f".{name}.*.tmp"):  # what a killed run was writing
            draft.unlink()
    if not any(output.iterdir()):
        return None
    if not resume:
        raise InputError(f"{output}: exists already; add --resume to go on, or choose another --output")
    if not (output / STATE).is_file():
        raise InputError(f"{output}: holds no {STATE}, so there is nothing to resume; choose another --output")
    return read_state(output / STATE)


def _choose_recipe(
    recipe: str | None, saved: SavedState | None, model: str | None, epochs: int | None, overrides: Sequence[str]
) -> Recipe:
    chosen = load_recipe(recipe or (saved.recipe if saved else "default"))
    if model is not None:
        chosen = load_recipe(chosen, {"model.name": model})
    chosen = load_recipe(chosen, overrides)
    return chosen if epochs is None else load_recipe(chosen, {"epochs": epochs})


def _check_same(saved: SavedState, recipe: Recipe, dataset: ImageFolder) -> None:
    differences = saved.recipe.differences(recipe)
    if differences:
        raise InputError(
            f"{saved.path}: belongs to another recipe ({'; '.join(differences)}); give the same one, "
            "or train into another --output"
        )
    if saved.dataset != fingerprint(dataset):
        raise InputError(
            f"{saved.path}: belongs to another dataset than {dataset.root} (classes or file names differ); "
            "give the same one, or train into another --output"
        )


def _summary(record: dict[str, Any], best: dict[str, Any] | None, epochs: int) -> str:
    train_loss, val_loss = ("none" if record[k] is None else f"{record[k]:.3f}" for k in ("train_loss", "val_loss"))
    skipped = f", {record['skipped_steps']} steps skipped" if record["skipped_steps"] else ""
    top1 = best["val_top1"] if best else 0.0
    return (
        f"epoch {record['epoch']}/{epochs}: training loss {train_loss}, validation loss {val_loss}, "
        f"top-1 {record['val_top1']:.1%} (best {top1:.1%}), {record['images_per_second']:.0f} images/s, "
        f"{record['seconds']:.1f} s{skipped}"
    )
