"""A training in progress: its state, what it learns from, and what it writes after each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lipsformer.checkpoints.checkpoint import save_checkpoint
from lipsformer.datasets import ImageDataset
from lipsformer.evaluation.report.write import write_report
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import InputError
from lipsformer.train.augment.pipeline import Augmentation
from lipsformer.train.data.dataset import (
    Batch,
    TrainingBatchSampler,
    TrainingImages,
    ValidationImages,
    ValidationLoader,
    load_training,
)
from lipsformer.train.data.rng import Stream, seed_torch
from lipsformer.train.data.sampler import EpochSampler
from lipsformer.train.listeners.curves import plot_curves
from lipsformer.train.listeners.live import Display
from lipsformer.train.listeners.pace import Progress
from lipsformer.train.listeners.tensorboard import TensorBoard
from lipsformer.train.optim.ema import average_weights
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.param_groups import freeze_stages
from lipsformer.train.optim.schedule import learning_rate

from .distributed import DistributedContext
from .epoch import EpochSums
from .initial_weights import StartingPoint
from .loop import Setting, train_epoch
from .recipe import Recipe
from .run_folder import BEST, CURVES, EVENTS, LAST, UNREADABLE, RunFolder
from .signals import StoppedError, StopRequest
from .state import TrainingState
from .validation import validate

__all__ = ["Training"]

Module = TypeVar("Module", bound=nn.Module)


class Training:
    """The training of `recipe` on `dataset`, of fingerprint `digest`, in `folder`."""

    def __init__(
        self,
        recipe: Recipe,
        start: StartingPoint,
        dataset: ImageDataset,
        digest: str,
        folder: RunFolder,
        distributed: DistributedContext,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.digest = digest
        self.folder = folder
        self.distributed = distributed
        self.title = f"{recipe.model['name']} on {dataset.root.resolve().name}"
        self.labels = np.asarray(dataset.validation.labels)
        self.preprocessing = dataclasses.replace(start.preprocessing, crop_pct=recipe.crop_pct)
        sampler = EpochSampler(np.asarray(dataset.train.labels), recipe)
        sampler.check_shares(distributed.world_size)
        self.setting = Setting(
            recipe=recipe,
            distributed=distributed,
            sampler=sampler,
            normalize=self._cast(PixelNormalize(self.preprocessing)),
            augmentation=Augmentation(
                rand_augment=recipe.rand_augment,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                random_erasing=recipe.random_erasing,
                label_smoothing=recipe.label_smoothing,
                classes=len(dataset.classes),
            ),
        )
        self.state = self._start(start)
        self.events: TensorBoard | None = None
        self.unreadable = folder.unreadable() if distributed.is_main else set()

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left to train, or none worth it."""
        best, patience = self.state.best, self.recipe.patience
        stalled = best is not None and 0 < patience <= self.state.epoch - best["epoch"]
        return stalled or self.state.epoch >= self.recipe.epochs

    def train(self, stop: StopRequest, *, tensorboard: bool = False) -> None:
        """Trains to the end, or until it is asked to stop.

        Raises:
            StoppedError: if it was asked to stop.
        """
        state, order = self.state, self.setting.sampler
        images = TrainingImages(self.dataset.train, self.recipe, self.preprocessing)
        batches = load_training(images, TrainingBatchSampler(order, self.distributed, start=state.step))
        validation = ValidationLoader(
            ValidationImages(self.dataset.validation, self.preprocessing), self.recipe, self.distributed
        )
        with contextlib.ExitStack() as stack:
            self.display = stack.enter_context(
                Display(
                    self.title,
                    self.recipe.epochs,
                    order.steps_per_epoch,
                    state.step,
                    quiet=not self.distributed.is_main,
                    validation=[record["val_top1"] for record in state.history],
                )
            )
            if tensorboard and self.distributed.is_main:
                self.events = stack.enter_context(TensorBoard(self.folder.path / EVENTS, state.step))
            self._introduce()
            if state.step == 0:
                self._save_state()
                if self.distributed.is_main:
                    self.folder.save_recipe(self.recipe)
            while not self.finished:
                started = time.perf_counter()
                if not train_epoch(state, batches, self.setting, stop, self._after_step):
                    self._save_state()
                    number = stop.signal or signal.SIGTERM  # where another process was asked, that is how
                    raise StoppedError(self.folder.path, state.step, order.total, number)
                self._finish_epoch(validation, started)

    def report(self) -> None:
        """Draws what there is to see of the finished epochs."""
        state = self.state
        if state.best is None or state.best_outcomes is None:
            return
        split, title = self.dataset.validation, f"{self.title}, epoch {state.best['epoch']}"
        with self.folder.writing():
            plot_curves(self.folder.path / CURVES, state.history, self.title)
            write_report(self.folder.path, state.best_outcomes, split, self.dataset.classes, self.preprocessing, title)

    def _start(self, start: StartingPoint) -> TrainingState:
        recipe = self.recipe
        seed_torch(recipe.seed, Stream.WEIGHTS)
        model = self._cast(start.build_model(self.dataset.classes))
        model.grad_checkpointing = recipe.grad_checkpointing
        freeze_stages(model, recipe.freeze)
        network = self.distributed.wrap(model)
        average = average_weights(model, recipe.ema_decay).eval()
        if recipe.compile:
            model.compile()
        return TrainingState(
            model=model,
            network=network,
            average=average,
            optimizers=build_optimizers(model, recipe),
            sums=EpochSums(self.setting.sampler.steps_per_epoch),
        )

    def _cast(self, module: Module) -> Module:
        """On the device, in the recipe's precision."""
        return module.to(self.distributed.device, torch.float64 if self.recipe.precision == "float64" else None)

    def _introduce(self) -> None:
        train, validation = self.dataset.train, self.dataset.validation
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        many = f" x {self.distributed.world_size}" if self.distributed.world_size > 1 else ""
        self.display.say(
            f"training {self.recipe.model['name']}, {parameters / 1e6:.1f} M parameters, "
            f"{self.preprocessing.image_size} px, on {len(train)} images of {len(self.dataset.classes)} classes, "
            f"validating on {len(validation)} ({validation.name}): {self.recipe.epochs} epochs of "
            f"{self.setting.sampler.steps_per_epoch} steps on {self.distributed.device.type}{many}"
        )
        if self.state.step:
            self.display.say(
                f"{self.folder.path}: resumed at step {self.state.step} of {self.setting.sampler.total}, "
                f"after epoch {self.state.epoch} of {self.recipe.epochs}"
            )

    def _after_step(self, batch: Batch, progress: Progress) -> None:
        self.display.step(progress)
        if self.events is not None:
            self.events.step(self.state.step, progress)
        self._note_unreadable(batch)
        if self.state.step % self.recipe.save_every == 0:
            self._save_state()

    def _after_batch(self, batch: Batch, done: int, count: int) -> None:
        self.display.note(f"validating {done}/{count}")
        self._note_unreadable(batch)

    def _note_unreadable(self, batch: Batch) -> None:
        if batch.unreadable and not self.unreadable:
            self.display.say(f"{batch.unreadable[0]}; it is left out, as others will be: {UNREADABLE} lists them")
        self.unreadable.update(batch.unreadable)

    def _save_state(self) -> None:
        """Makes the run resumable from here."""
        self.unreadable = set(self.distributed.all_gather(sorted(self.unreadable)))
        if self.distributed.is_main:
            self.folder.save_unreadable(self.unreadable)
            self.folder.save_state(self.state, self.recipe, self.digest)

    def _finish_epoch(self, batches: ValidationLoader, started: float) -> None:
        """Validates and writes an epoch. The state comes last: killed before, the epoch's end is done again."""
        state = self.state
        outcomes = validate(state.average.module, batches, self.labels, self.setting, self._after_batch)
        if not outcomes.images:
            self._save_state()
            raise InputError(f"{self.dataset.root}: none of the images to validate on can be read; see {UNREADABLE}")
        record = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "learning_rate": learning_rate(state.step - 1, self.setting.sampler.total, self.recipe.peak_rate),
            **state.sums.record(),
            "val_loss": outcomes.mean_loss if math.isfinite(outcomes.mean_loss) else None,
            "val_top1": outcomes.top1,
            "val_top5": outcomes.top5,
            "val_images": outcomes.images,
            "seconds": round(time.perf_counter() - started, 2),
        }
        state.finish_epoch(record, outcomes)
        if self.distributed.is_main:
            with self.folder.writing():
                self._save_checkpoint(LAST)
                if state.best is record:
                    self._save_checkpoint(BEST)
            self.folder.save_history(state)
        self._save_state()
        if self.events is not None:
            self.events.epoch(record)
        self.display.epoch(_summary(record, state.best, self.recipe.epochs, len(self.unreadable)), record["val_top1"])

    def _save_checkpoint(self, name: str) -> None:
        record = self.state.history[-1]
        metrics = {
            "dataset": self.dataset.root.resolve().name,
            "split": self.dataset.validation.name,
            "images": record["val_images"],
            "epoch": record["epoch"],
            "epochs": self.recipe.epochs,
            "top1": record["val_top1"],
            "loss": record["val_loss"],
        }
        save_checkpoint(
            self.folder.path / name,
            config=self.state.model.config,
            weights=self.state.average.module.state_dict(),
            classes=self.dataset.classes,
            preprocessing=self.preprocessing,
            metrics=metrics,
        )


def _summary(record: dict[str, Any], best: dict[str, Any] | None, epochs: int, unreadable: int) -> str:
    train_loss, val_loss = ("none" if record[k] is None else f"{record[k]:.3f}" for k in ("train_loss", "val_loss"))
    skipped = f", {record['skipped_steps']} steps skipped" if record["skipped_steps"] else ""
    left_out = f", {unreadable} images unreadable" if unreadable else ""
    speed = f", {record['images_per_second']:.0f} images/s" if record["images_per_second"] else ""
    top1 = best["val_top1"] if best else 0.0
    return (
        f"epoch {record['epoch']}/{epochs}: training loss {train_loss}, validation loss {val_loss}, "
        f"top-1 {record['val_top1']:.1%} (best {top1:.1%}){speed}, {record['seconds']:.1f} s{skipped}{left_out}"
    )
